"""Put the trials of a long fault run into docs/reliability.md.

    BRAINMRI_LONG_TESTS=1 BRAINMRI_TALLY=tally.jsonl .venv/bin/pytest tests/faults
    python benchmarks/reliability_table.py tally.jsonl

Each test records its trials and losses in the tally; rows whose test is not in it stay as they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"


def main(tally: Path) -> None:
    trials: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for line in tally.read_text().splitlines():
        noted = json.loads(line)
        trials[noted["test"]][0] += noted["trials"]
        trials[noted["test"]][1] += noted["losses"]
    lines = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        named = re.match(r"`[\w/.]+::(\w+)`", cells[2]) if len(cells) == 5 else None
        if named and named[1] in trials:
            cells[3:] = [str(number) for number in trials[named[1]]]
            line = f"| {' | '.join(cells)} |"
        lines.append(line)
    PAGE.write_text("\n".join(lines) + "\n")
    for test, (count, losses) in sorted(trials.items()):
        print(f"{count:>5} trials, {losses} losses: {test}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
