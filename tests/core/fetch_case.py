"""Folders and archives of the official layout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def make_tree(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def make_zip(tree: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(tree).as_posix())
    return path


OFFICIAL = [
    "Training/glioma_tumor/gg (1).jpg",
    "Training/no_tumor/1.jpg",
    "Testing/glioma_tumor/gg (1).jpg",
    "Testing/no_tumor/2.png",
]
