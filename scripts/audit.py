"""Look up known vulnerabilities of the packages of ``requirements.lock``; without a network, say so and pass.

``python -m scripts.audit`` ends with 0 (none, or the service could not be asked), 1 (some) or, with ``--strict``, 2 (the
service could not be asked).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.pins import LOCK, pins

_PROBE = (
    "pip==9.0.0"  # has known vulnerabilities: an answer without any means that the service was not reached
)


def ask(requirements: Path) -> list[dict[str, Any]] | None:
    """Return pip-audit's answer for each pinned package; None if it could not ask."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(requirements),
        "--disable-pip",
        "--no-deps",
    ]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        return None


def audit(text: str, strict: bool) -> int:
    """Audit the pins and return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{_PROBE}\n")
        probe = ask(requirements)
        if not probe or not probe[0].get("vulns"):
            print("Not audited: the vulnerability service cannot be reached; run it again with a network.")
            return 2 if strict else 0
        requirements.write_text("\n".join(f"{name}=={version}" for name, (version, _) in pins(text).items()))
        answers = ask(requirements)
    if answers is None:
        print("Not audited: the vulnerability service stopped answering; run it again.")
        return 2 if strict else 0
    unknown = [item["name"] for item in answers if "skip_reason" in item]
    bad = [(item, vuln) for item in answers for vuln in item.get("vulns", [])]
    for item, vuln in bad:
        fixed = ", ".join(vuln["fix_versions"]) or "no version yet"
        print(f"{item['name']} {item['version']}: {vuln['id']}, fixed in {fixed}")
    print(
        f"{len(answers) - len(unknown)} packages audited, {len(bad)} vulnerabilities, {len(unknown)} unknown to the service."
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(audit(LOCK.read_text(), "--strict" in sys.argv[1:]))
