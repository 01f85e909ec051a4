"""Time the first installation from the lock: uv, as `make install` calls it, beside pip with the same hashed file.

    python benchmarks/bench_install.py [--warm]

Each installs all packages of ``requirements.lock`` into a new environment, with its hashes checked. Both start without a cache; with
``--warm`` each then installs once more, from what it has cached. The time of uv includes its own installation by pip. The index is
the one that both are configured for, so the seconds depend on its speed; the ratio is of the same run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def install(tool: str, folder: Path, caches: Path) -> float:
    """Install the lock into a new environment and return the seconds."""
    python = folder / "bin/python"
    environment = os.environ | {
        "PIP_CACHE_DIR": str(caches / "pip"),
        "UV_CACHE_DIR": str(caches / "uv"),
        "VIRTUAL_ENV": str(folder),
    }
    strict = ["install", "--quiet", "--quiet", "--require-hashes", "--requirement"]
    started = time.perf_counter()

    def run(*command: str | Path) -> None:
        subprocess.run(command, env=environment, check=True)

    run(sys.executable, "-m", "venv", folder)
    if tool == "pip":
        # pip takes gql[requests], which a package asks for, for another requirement than the lock's gql, so it resolves nothing here
        run(python, "-m", "pip", *strict, LOCK, "--no-deps")
    else:
        alone = re.search(r"^uv==(?:.*\\\n)*.*\n", LOCK.read_text(), re.MULTILINE)
        assert alone is not None
        (folder / "uv.lock").write_text(alone[0])
        run(python, "-m", "pip", *strict, folder / "uv.lock")
        run(folder / "bin/uv", "pip", *strict, LOCK)
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--warm", action="store_true", help="then once more from the caches")
    warm = parser.parse_args().warm
    print("| installation | uv | pip | pip / uv |\n| --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in ("first", "from the cache")[: 1 + warm]:
            uv, pip = (
                install(tool, folder / f"{tool}-{case[0]}", folder / "caches") for tool in ("uv", "pip")
            )
            print(f"| {case} | {uv:.0f} s | {pip:.0f} s | {pip / uv:.1f} |", flush=True)


if __name__ == "__main__":
    main()
