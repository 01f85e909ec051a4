"""Install the project into this Python's environment, each package checked against the hashes of ``constraints.txt``.

    python -m scripts.install [EXTRA ...]

pip's hash-checking mode takes nothing but archives with a version and a hash, so not the project's own folder. pip is
therefore asked first what it would install under the pins; that list is installed with the hashes, and then the project.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)((?:.*\\\n)*.*)$", re.MULTILINE)


def canonical(name: str) -> str:
    """Return a package's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of each package that a constraints file pins, by canonical name."""
    return {
        canonical(name): (version, re.findall(r"--hash=(sha256:[0-9a-f]{64})", rest))
        for name, version, rest in _PIN.findall(text)
    }


def requirements(extras: list[str]) -> list[str]:
    """Return what the project needs, to be built and to run with the extras, as its metadata have it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    found = [*build, *setup["options"]["install_requires"].split("\n")]
    todo = list(extras)
    while todo:
        for line in setup["options.extras_require"][todo.pop()].split("\n"):
            own = re.fullmatch(r"brainmri\[(.+)\]", line)
            todo += own[1].split(",") if own else []
            found += [] if own else [line]
    return [line for line in found if line]


def hashed(
    report: dict[str, list[dict[str, dict[str, str]]]], pinned: dict[str, tuple[str, list[str]]]
) -> str:
    """Return the requirements file of what pip would install, each with its version and hashes.

    Raises
    ------
    SystemExit
        If a package is not pinned, or pinned without a hash.
    """
    lines = []
    for item in report["install"]:
        name = canonical(item["metadata"]["name"])
        version, hashes = pinned.get(name, ("", []))
        if not hashes:
            raise SystemExit(
                f"{name} {item['metadata']['version']} is needed here, but constraints.txt has no hash of it; add it there."
            )
        lines.append(" ".join([f"{name}=={version}", *(f"--hash={value}" for value in hashes)]))
    return "\n".join(lines)


def main(extras: list[str]) -> None:
    """Install the project with some of its extras."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = pins((ROOT / "constraints.txt").read_text())
    with tempfile.TemporaryDirectory() as folder:
        constraints, report, archives = (
            Path(folder) / name for name in ("pins.txt", "plan.json", "archives.txt")
        )
        constraints.write_text("".join(f"{name}=={version}\n" for name, (version, _) in pinned.items()))
        plan = ["--dry-run", "--report", str(report), "--constraint", str(constraints)]
        subprocess.run([*pip, *plan, *requirements(extras)], check=True)
        archives.write_text(hashed(json.loads(report.read_text()), pinned))
        if archives.stat().st_size:
            subprocess.run(
                [*pip, "--require-hashes", "--no-deps", "--requirement", str(archives)], check=True
            )
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], check=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"pip could not install what constraints.txt pins (exit code {error.returncode})."
        ) from None
    except KeyError as error:
        raise SystemExit(f"setup.cfg has no extra {error.args[0]!r}.") from None
