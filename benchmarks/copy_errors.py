"""Error rates of the search for copies on the real sets, where the Figshare slice behind an image is known.

    BRAINMRI_ARCHIVES=... python benchmarks/copy_errors.py [--patients FOLDER]

Two images of one slice are copies; two slices of one patient are neighbours, however alike. The tables that say which
image is which slice are CSV files (path, patient, figshare_slice) in the folder of `--patients`, by default `patients`
beside the archives. Pairs in which an image has no known slice are counted, not judged.

The second table applies changes that a copy may undergo to 200 images, in all eight orientations, and says how many are found.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from brainmri_core.config.data import CopySearchConfig
from brainmri_core.copies.fingerprint import FingerprintTable, fingerprint_files
from brainmri_core.copies.search import find_copies

SETS = {"Kaggle": "brain-tumor-classification-mri", "Figshare": "figshare-1512427-jpg"}
TABLES = {"Kaggle": "sartajbhuvaji__brain-tumor-classification-mri.csv", "Figshare": "figshare-1512427.csv"}
RULES = {
    "default": CopySearchConfig(),
    "before": CopySearchConfig(ncc_threshold=0.98, max_difference=1e6, orientations="mirror"),
    "correlation .975 alone": CopySearchConfig(max_difference=1e6),
}
Change = Callable[[Image.Image], Image.Image]


def known_slices(folder: Path, name: str, paths: list[str]) -> pd.DataFrame:
    """Return slice and patient of each path; 0 and empty where they are unknown."""
    table = pd.read_csv(folder / TABLES[name])
    if name == "Figshare":
        slices = [int(Path(path).stem) for path in paths]
        patients = table.set_index("slice")["patient"]
    else:
        of = table.set_index("path")["figshare_slice"]
        slices = [int(of.get(path, 0)) for path in paths]
        patients = table.groupby("figshare_slice")["patient"].first()
    found = {"set": name, "slice": slices, "patient": [str(patients.get(one, "")) for one in slices]}
    return pd.DataFrame(found)


def joined(tables: list[FingerprintTable]) -> FingerprintTable:
    """Concatenate fingerprints."""
    arrays = ("colourfulness", "hashes", "trimmed_hashes", "thumbs", "trimmed_thumbs")
    return FingerprintTable(
        pixel_sha256=[digest for table in tables for digest in table.pixel_sha256],
        failures={},
        **{name: np.concatenate([getattr(table, name) for table in tables]) for name in arrays},
    )


def judge(known: pd.DataFrame, prints: FingerprintTable, config: CopySearchConfig) -> pd.DataFrame:
    """Count right, wrong and missed pairs within each set and across them."""
    pairs = find_copies(prints, config)
    sets, slices, patients = (known[name].to_numpy(object) for name in ("set", "slice", "patient"))
    copies = known[known["slice"] > 0].groupby("slice").indices
    true = {(a, b) for rows in copies.values() for n, a in enumerate(rows) for b in rows[n + 1 :]}
    rows = known.index[known["slice"] > 0].to_numpy()
    true = {(int(rows[a]), int(rows[b])) for a, b in true}
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    table = []
    for a, b in found | true:
        scope = sets[a] if sets[a] == sets[b] else "across"
        if not slices[a] or not slices[b]:
            kind = "unknown"
        elif slices[a] == slices[b]:
            kind = "copies found" if (a, b) in found else "copies missed"
        else:
            kind = "false: same patient" if patients[a] == patients[b] else "false: other patient"
        table.append((scope, kind))
    columns = ["copies found", "copies missed", "false: same patient", "false: other patient", "unknown"]
    counts = pd.DataFrame(table, columns=["scope", "kind"]).value_counts().unstack(fill_value=0)
    return counts.reindex(index=["Kaggle", "Figshare", "across"], columns=columns, fill_value=0)


def encoded(image: Image.Image, quality: int) -> Image.Image:
    """Encode as JPEG and decode again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def curve(change: Callable[[float], float]) -> Change:
    """Return a change of gray levels, 0 to 1."""
    levels = [int(np.clip(255 * change(level / 255), 0, 255)) for level in range(256)]
    return lambda image: image.point(levels)


def scaled(factor: float) -> Change:
    """Return a change of scale."""
    return lambda image: image.resize(
        (max(20, round(image.width * factor)), max(20, round(image.height * factor))),
        Image.Resampling.LANCZOS,
    )


def cropped(share: float) -> Change:
    """Return a cut of a share of each side."""
    return lambda image: image.crop(
        (
            round(share * image.width),
            round(share * image.height),
            round((1 - share) * image.width),
            round((1 - share) * image.height),
        )
    )


def padded(level: int) -> Change:
    """Return a margin, wider left and right than above and below."""

    def change(image: Image.Image) -> Image.Image:
        larger = Image.new("L", (image.width + 60, image.height + 30), level)
        larger.paste(image, (30, 15))
        return larger

    return change


def noisy(image: Image.Image) -> Image.Image:
    """Add noise of ten gray levels."""
    noise = np.random.default_rng(0).normal(0, 10, (image.height, image.width))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def written(image: Image.Image) -> Image.Image:
    """Burn in a short text."""
    image = image.copy()
    ImageDraw.Draw(image).text((5, 5), "R 12 A", fill=230, font_size=max(10, image.height // 16))
    return image


CHANGES: dict[str, Change] = {
    "JPEG quality 30": lambda image: encoded(image, 30),
    "JPEG quality 10": lambda image: encoded(image, 10),
    "scaled by .4": scaled(0.4),
    "scaled by 1.5": scaled(1.5),
    "squashed to 200 x 300": lambda image: image.resize((200, 300)),
    "brighter by 10%": curve(lambda level: level + 0.1),
    "contrast 1.3": curve(lambda level: 1.3 * level),
    "gamma .7": curve(lambda level: level**0.7),
    "gamma 1.3": curve(lambda level: level**1.3),
    "gamma 1.6": curve(lambda level: level**1.6),
    "noise of 10 levels": noisy,
    "black margin": padded(0),
    "white margin": padded(255),
    "text burnt in": written,
    "1% cut from each side": cropped(0.01),
    "3% cut from each side": cropped(0.03),
    "6% cut from each side": cropped(0.06),
    "rotated by 1 degree": lambda image: image.rotate(1, Image.Resampling.BICUBIC),
    "rotated by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "inverted": curve(lambda level: 1 - level),
}


def planted(source: Path, paths: list[str], folder: Path) -> pd.DataFrame:
    """Return the share of changed, turned and encoded copies that the default search and the one before find."""
    rng = np.random.default_rng(3)
    chosen = [paths[row] for row in np.sort(rng.choice(len(paths), 200, replace=False))]
    names = []
    for row, path in enumerate(chosen):
        image = Image.open(source / path).convert("L")
        image.save(folder / f"{row}.png")
        names.append(f"{row}.png")
        for kind, change in enumerate(CHANGES.values()):
            turn = (row + kind) % 8
            copy = change(image)
            copy = copy.transpose(Image.Transpose(turn - 1)) if turn else copy
            copy.save(folder / f"{row}-{kind}.jpg", quality=88)
            names.append(f"{row}-{kind}.jpg")
    prints = fingerprint_files(folder, names)
    step = len(CHANGES) + 1
    result = {}
    for rule, orientations in (("default", "all"), ("before", "all")):
        pairs = find_copies(prints, RULES[rule].model_copy(update={"orientations": orientations}))
        found = (pairs.first % step == 0) & (pairs.second // step == pairs.first // step)
        kinds = pairs.second[found] % step - 1
        result[rule] = np.bincount(kinds, minlength=len(CHANGES)) / len(chosen)
    return pd.DataFrame(result, index=list(CHANGES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    archives = Path(os.environ.get("BRAINMRI_ARCHIVES", "."))
    parser.add_argument("--patients", type=Path, default=archives / "patients", help="folder of the tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prints, known, listed = [], [], {}
        for name, stem in SETS.items():
            root = Path(scratch) / name
            with zipfile.ZipFile(archives / f"{stem}.zip") as archive:
                archive.extractall(root)
            paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
            listed[name] = (root, paths)
            prints.append(fingerprint_files(root, paths))
            known.append(known_slices(options.patients, name, paths))
        both, table = joined(prints), pd.concat(known, ignore_index=True)
        for rule, config in RULES.items():
            print(f"\n{rule}: {config.model_dump()}")
            print(judge(table, both, config).to_string())
        copies = Path(scratch) / "planted"
        copies.mkdir()
        print("\nshare of planted copies found, each in one of the eight orientations")
        print(planted(*listed["Kaggle"], copies).round(3).to_string())


if __name__ == "__main__":
    main()
