"""Draw the floor plan in docs/architecture.md from the imports: every room, and an arc to each room that it imports.

A room is a folder of a package, or the files of its root.

    python -m scripts.floor_plan [--check]

Rooms are drawn in the order of the layers contracts in pyproject.toml, so every arc goes down. With ``--check`` nothing is
written; the exit code is 1 if the stored picture differs from the code.
"""

from __future__ import annotations

import ast
import html
import sys
import tomllib
from collections import Counter
from itertools import takewhile
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "floor-plan.svg"
PACKAGES = {"brainmri_dagster": "the Dagster side", "brainmri_core": "the core, a plain library"}
# Files of the root that know nothing of a project: each is a room of its own, at the bottom.
GROUND = {"errors", "arrays", "escaping", "wording"}
_ROW, _TOP, _LEFT, _BOX = 26, 34, 16, 560


def rooms(package: str) -> dict[str, list[str]]:
    """Return the rooms of a package from top to bottom, each with its modules; the files of its root are one room."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(item["layers"] for item in contracts if item.get("containers") == [package])
    found: dict[str, list[str]] = {}
    for layer in layers:
        for module in map(str.strip, layer.split("|")):
            folder = (ROOT / package / module).is_dir()
            found.setdefault(f"{module}/" if folder else _root_room(package, module), []).append(module)
    return found


def _root_room(package: str, module: str) -> str:
    if package == "brainmri_core" and module not in GROUND:
        return "stages and commands"
    return module


def arcs(package: str, plan: dict[str, list[str]]) -> Counter[tuple[str, str]]:
    """Count the imports from room to room."""
    graph = grimp.build_graph(package)
    home = {module: room for room, modules in plan.items() for module in modules}

    def room_of(module: str) -> str | None:
        return home.get(module.partition(".")[2].partition(".")[0])

    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            pair = room_of(module), room_of(other)
            if pair[0] and pair[1] and pair[0] != pair[1]:
                found[pair[0], pair[1]] += 1
    return found


def _says(package: str, modules: list[str]) -> str:
    if len(modules) > 1:
        return ", ".join(sorted(modules))
    path = ROOT / package / modules[0]
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return text.split("\n")[0]


def _files(package: str, modules: list[str]) -> int:
    folder = ROOT / package / modules[0]
    return len([*folder.glob("[!_]*.py")]) if folder.is_dir() else len(modules)


def draw() -> str:
    """Return the picture as SVG."""
    parts: list[str] = []
    top = 0
    for package, title in PACKAGES.items():
        plan = rooms(package)
        parts.append(f'<text x="{_LEFT}" y="{top + 22}" class="title">{package}: {title}</text>')
        parts.append(f'<text x="{_LEFT + _BOX - 8}" y="{top + 22}" text-anchor="end">files</text>')
        row = {room: top + _TOP + _ROW * number for number, room in enumerate(plan)}
        for room, modules in plan.items():
            count = _files(package, modules)
            says = _shortened(_says(package, modules), 86 - len(room))
            parts.append(
                f'<rect x="{_LEFT}" y="{row[room]}" width="{_BOX}" height="{_ROW - 4}" rx="4"/>'
                f'<text x="{_LEFT + 8}" y="{row[room] + 15}"><tspan class="room">{room}</tspan>'
                f"<tspan> {html.escape(says)}</tspan></text>"
                f'<text x="{_LEFT + _BOX - 8}" y="{row[room] + 15}" text-anchor="end">{count}</text>'
            )
        for (upper, lower), count in sorted(arcs(package, plan).items()):
            if row[lower] < row[upper]:
                raise SystemExit(f"{upper} imports {lower}, which is above it.")
            y, z, x = row[upper] + 11, row[lower] + 11, _LEFT + _BOX
            bulge = x + 14 + 0.42 * (z - y)
            width = min(3.0, 0.6 + count / 12)
            parts.append(
                f'<path d="M{x} {y} C{bulge:.0f} {y} {bulge:.0f} {z} {x} {z}" stroke-width="{width:.1f}"/>'
            )
        top += _TOP + _ROW * len(plan) + 10
    style = (
        "text{font:11px sans-serif;fill:#444}.room{font-weight:bold;fill:#000}.title{font-size:13px;font-weight:bold;fill:#000}"
        "rect{fill:#e9f4f2;stroke:#7fb3aa}path{fill:none;stroke:#0b7a6b;stroke-opacity:.45}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {top}" role="img" '
        f'aria-label="Rooms of the code and their imports"><rect width="780" height="{top}" style="fill:#fff;stroke:none"/>'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    words = list(takewhile(lambda end: end <= most, (i for i, letter in enumerate(text) if letter == " ")))
    return text[: words[-1]].rstrip(",;:") + " …" if words else text[:most]


def main() -> None:
    """Write the picture, or check it."""
    made = draw()
    if "--check" not in sys.argv:
        PICTURE.write_text(made)
    elif not PICTURE.is_file() or PICTURE.read_text() != made:
        raise SystemExit(
            f"{PICTURE.relative_to(ROOT)} does not match the code; run python -m scripts.floor_plan."
        )


if __name__ == "__main__":
    main()
