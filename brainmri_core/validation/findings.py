"""The findings of validation: what each check looks for, how bad it is, and which files it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from brainmri_core.arrays import Mask
from brainmri_core.config.data import ValidateConfig
from brainmri_core.copies.likeness import ORIENTATIONS, SEARCHED, orientation_words
from brainmri_core.escaping import printable
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.validation.patient_findings import Remark, large_patients, two_classes, wrong_labels

if TYPE_CHECKING:
    import pandas as pd

    from brainmri_core.images.statistics import PackScan
    from brainmri_core.validation.accounting import Account
    from brainmri_core.validation.leak_report import LeakReport
    from brainmri_core.validation.shortcuts import ShortcutScore

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

MAX_COLOURFULNESS = 12.0
MAX_ASPECT = 2.0
MAX_SHARE_DEVIATION = 0.05
LARGE_GROUP_SHARE = 0.03
LARGE_GROUP_LEAST = 10


class Finding(BaseModel):
    """What one check found.

    Attributes
    ----------
    check : str
        Name of the check, a key of `CHECKS`.
    count : int
        Images (or classes) concerned.
    files : list of str
        The images, as paths relative to the data set's root.
    blocking : bool
        Fails validation whatever `fail_on` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    severity: Severity
    count: int
    message: str
    files: list[str] = []
    blocking: bool = False

    def fails(self, fail_on: Literal["error", "warning", "never"]) -> bool:
        """Say whether this fails validation: it is blocking, or at least as severe as `fail_on`."""
        failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
        return self.blocking or self.severity in failing


@dataclass(frozen=True)
class Evidence:
    """Everything the checks look at; `samples` has a row per image, `scan` one entry per row of the pack."""

    config: ValidateConfig
    samples: pd.DataFrame
    copies: pd.DataFrame
    scan: PackScan
    pack: PackPointer
    mapping: MappingPointer
    expected: MappingPointer
    expected_samples: pd.DataFrame
    split_record: dict[str, Any]
    leaks: pd.DataFrame
    leak: LeakReport
    shortcuts: list[ShortcutScore]
    account: Account

    @property
    def packed(self) -> pd.DataFrame:
        """The images that have pixels in the pack."""
        return self.samples[self.samples["row"] >= 0]

    @property
    def excluded(self) -> Mask:
        """Images on neither side."""
        return np.asarray(self.samples["split"] == "excluded", np.bool_)


Check = Callable[[Evidence], Finding | None]


def _unreadable(evidence: Evidence) -> Finding | None:
    samples = evidence.samples
    before = evidence.expected_samples.set_index("path")["split"].reindex(samples["path"]).to_numpy(object)
    skipped = samples["reason"].str.startswith("extension not in")
    undecoded = samples["pixel_sha256"].eq("") | ((before != "excluded") & ~skipped)
    failed = evidence.excluded & undecoded.to_numpy(np.bool_)
    files = samples["path"][failed]
    reasons = samples["reason"][failed].value_counts()
    named = "; ".join(f"{n} x {reason}" for reason, n in reasons.head(3).items())
    return _finding(
        "unreadable", "warning", files, f"{{n}} could not be decoded and {{are}} left out ({named})."
    )


def _left_out(evidence: Evidence) -> Finding | None:
    account = evidence.account
    if not account.surprises:
        return None
    message = (
        f"{len(account.missed)} files that may be images are left out: {', '.join(account.surprises)}. The table "
        "from the archive to the pack gives each reason and what to do."
    )
    return _finding("left_out", "warning", account.missed, message)


def _wrong_size(evidence: Evidence) -> Finding | None:
    wanted, packed = evidence.config.size, evidence.pack.size
    if wanted is None or wanted == packed:
        return None
    message = (
        f"The pack holds images of {packed} x {packed} pixels, but validate.size is {wanted}; "
        "set resize.size and validate.size to the same number."
    )
    return _finding("wrong_size", "error", evidence.packed["path"], message)


def _small_file(evidence: Evidence) -> Finding | None:
    least = evidence.config.min_file_bytes
    files = evidence.samples["path"][evidence.samples["bytes"] < least]
    return _finding("small_file", "warning", files, f"{{n}} {{are}} smaller than {least} bytes.")


def _blank(evidence: Evidence) -> Finding | None:
    packed, least = evidence.packed, evidence.config.warn_low_std
    low = packed["std"] < least
    extreme = (packed["mean"] < 2.0) | (packed["mean"] > 253.0)
    message = f"{{n}} {{are}} nearly one gray level (standard deviation below {least:g}) or almost all black or white."
    return _finding("blank", "warning", packed["path"][low | extreme], message)


def _not_mri_like(evidence: Evidence) -> Finding | None:
    packed = evidence.packed
    aspect = packed["width"] / packed["height"].clip(lower=1)
    odd = (aspect > MAX_ASPECT) | (aspect < 1 / MAX_ASPECT) | (packed["colourfulness"] > MAX_COLOURFULNESS)
    message = (
        f"{{n}} {{look}} unlike an MRI slice: colourful, or more than {MAX_ASPECT:g} times as long as wide. "
        "Photographs and screenshots do."
    )
    return _finding("not_mri_like", "warning", packed["path"][odd], message)


def _mixed_depths(evidence: Evidence) -> Finding | None:
    """Name the images whose depth is not that of most."""
    packed = evidence.packed
    if "depth" not in packed.columns:
        return None
    counts = packed["depth"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    named = ", ".join(f"{n} of {depth}" for depth, n in counts.items())
    message = (
        f"The images come in different depths ({named}), so {{n}} {{were}} turned into gray levels in another way than "
        "most; see that depth does not go with the class, or bring all to one depth."
    )
    return _finding("mixed_depths", "warning", packed["path"][packed["depth"] != counts.index[0]], message)


def _burnt_in(evidence: Evidence) -> Finding | None:
    packed = evidence.packed
    rows = packed["row"].to_numpy(np.int64)
    text, frame = evidence.scan.text[rows], evidence.scan.framed[rows]
    message = (
        f"{{n}} {{have}} something burnt into the picture: {int(text.sum())} with writing in a corner, "
        f"{int(frame.sum())} with a frame or a line along an edge. A model can learn it, and writing can name a person."
    )
    return _finding("burnt_in", "warning", packed["path"][text | frame], message)


def _duplicates(evidence: Evidence) -> Finding | None:
    copies = evidence.copies
    same = copies[copies["same_label"]]
    files = sorted({*same["path_a"], *same["path_b"]})
    origin = dict(zip(evidence.samples["path"], evidence.samples["origin"], strict=True))
    across = sum(origin.get(a) != origin.get(b) for a, b in zip(same["path_a"], same["path_b"], strict=True))
    message = (
        f"{{n}} {{have}} a copy of the same class: {len(same)} pairs, {int(same['exact'].sum())} of them "
        f"pixel-identical, {across} between the official folders."
    )
    return _finding("duplicates", "info", files, message)


def _label_conflicts(evidence: Evidence) -> Finding | None:
    from brainmri_core.copies.leaks import (
        label_conflicts,  # pandas, which the names of the checks need not wait for
    )

    samples, copies = evidence.samples, evidence.copies
    files = samples["path"][label_conflicts(samples, copies, np.ones(len(samples), np.bool_))]
    kept = int(label_conflicts(samples, copies, ~evidence.excluded).sum())
    if kept:
        message = f"{{n}} {{have}} a copy with another label; {kept} of them are still in use."
        return _finding("label_conflicts", "warning", files, message)
    return _finding(
        "label_conflicts", "info", files, "{n} {have} a copy with another label; no such pair is in use."
    )


def _remarked(check: str, remark: Remark | None) -> Finding | None:
    return _finding(check, *remark) if remark else None


def _label_corrections(evidence: Evidence) -> Finding | None:
    return _remarked("label_corrections", wrong_labels(evidence.samples, evidence.split_record))


def _patient_classes(evidence: Evidence) -> Finding | None:
    return _remarked("patient_classes", two_classes(evidence.samples))


def _large_patient(evidence: Evidence) -> Finding | None:
    return _remarked("large_patient", large_patients(evidence.samples, evidence.split_record))


def _patient_source(evidence: Evidence) -> Finding | None:
    notes = (evidence.split_record.get("patients") or {}).get("notes") or []
    if not notes:
        return None
    return Finding(check="patient_source", severity="warning", count=len(notes), message=" ".join(notes))


def _large_group(evidence: Evidence) -> Finding | None:
    from brainmri_core.project.sample_table import (
        known_patients,
    )  # pandas, which the names of the checks need not wait for

    used = evidence.samples[~evidence.excluded]
    patients = known_patients(used)
    # the images of a known patient belong together, however many they are
    apart = used["path"].where(patients == "", patients).groupby(used["group"]).nunique()
    limit = max(LARGE_GROUP_LEAST, LARGE_GROUP_SHARE * len(used))
    if apart.empty or apart.max() <= limit:
        return None
    files = used["path"][used["group"] == apart.idxmax()]
    message = (
        f"The largest group holds {{n}}, {len(files) / len(used):.1%} of all; if these are no copies of each other and not "
        "of one patient, the search chained unlike images together: raise split.copies.ncc_threshold, or set "
        "split.group_by to patient where neighbouring numbers say nothing about patients."
    )
    return _finding("large_group", "warning", files, message)


def _class_imbalance(evidence: Evidence) -> Finding | None:
    counts = evidence.packed["label"].value_counts()
    if len(counts) < 2 or counts.iloc[0] <= evidence.config.max_imbalance * counts.iloc[-1]:
        return None
    message = (
        f"The class {counts.index[0]} has {counts.iloc[0]} images and {counts.index[-1]} only {counts.iloc[-1]}, "
        f"more than {evidence.config.max_imbalance:g} to 1."
    )
    return Finding(check="class_imbalance", severity="warning", count=len(counts), message=message)


def _class_missing(evidence: Evidence) -> Finding | None:
    packed = evidence.packed
    sides = [side for side in ("train", "test") if (packed["split"] == side).any()]
    missing = [
        f"{name} in {side}"
        for side in sides
        for name in evidence.pack.classes
        if not ((packed["split"] == side) & (packed["label"] == name)).any()
    ]
    if len(sides) == 1 and not missing:
        message = f"All images are on the {sides[0]} side, as in a class-folder tree; nothing can be said about leaks."
        return Finding(check="class_missing_from_split", severity="info", count=1, message=message)
    if not missing:
        return None
    message = f"No image of {', '.join(missing)}: such a class can be neither learnt nor measured."
    return Finding(check="class_missing_from_split", severity="error", count=len(missing), message=message)


def _class_missing_from_fold(evidence: Evidence) -> Finding | None:
    training = evidence.packed[evidence.packed["fold"] >= 0]
    counts = training.groupby(["fold", "label"]).size().unstack(fill_value=0)
    folds = evidence.split_record.get("config", {}).get("folds", len(counts))
    counts = counts.reindex(range(folds), fill_value=0)
    missing = [
        f"{label} in fold {fold}"
        for label in counts.columns
        for fold in counts.index[counts[label] == 0].tolist()
    ]
    if not missing:
        return None
    message = (
        f"No image of {', '.join(missing)}: fewer groups than folds, so cross-validation cannot measure the class there; "
        "lower split.folds or add images."
    )
    return Finding(check="class_missing_from_fold", severity="warning", count=len(missing), message=message)


def _class_shares(evidence: Evidence) -> Finding | None:
    deviation = evidence.split_record.get("test_share_deviation") or {}
    counts = evidence.samples[~evidence.excluded]["label"].value_counts()
    far = {
        name: value
        for name, value in deviation.items()
        if abs(value) > MAX_SHARE_DEVIATION and abs(value) * counts.get(name, 0) > 1
    }
    if not far:
        return None
    wanted = evidence.split_record["config"]["test_frac"]
    named = ", ".join(f"{wanted + value:.0%} of {name}" for name, value in far.items())
    message = (
        f"The test split holds {named}, but split.test_frac asks for {wanted:.0%}: groups are kept whole; "
        "try another split.seed or add images."
    )
    return Finding(check="class_shares", severity="warning", count=len(far), message=message)


def _class_set_mismatch(evidence: Evidence) -> Finding | None:
    expected = evidence.expected
    if evidence.pack.classes != expected.classes:
        message = (
            f"The pack's classes are {', '.join(evidence.pack.classes)}, but the mapping pointer says "
            f"{', '.join(expected.classes)}; run resize again from that mapping."
        )
        count = len(set(evidence.pack.classes) ^ set(expected.classes)) or len(expected.classes)
        return Finding(
            check="class_set_mismatch", severity="error", count=count, message=message, blocking=True
        )
    ours = evidence.packed.set_index("path")[["class_index", "split"]]
    theirs = evidence.expected_samples.set_index("path")[["class_index", "split"]].reindex(ours.index)
    numbered = {name: index for index, name in enumerate(expected.classes)}
    named = evidence.packed["label"].map(numbered).to_numpy() == ours["class_index"].to_numpy()
    differs = (ours != theirs).any(axis=1).to_numpy() | ~named
    message = "{n} {have} another class or side in the pack than in the mapping; run resize again from that mapping."
    return _finding("class_set_mismatch", "error", ours.index[differs], message, blocking=True)


def _leak(evidence: Evidence) -> Finding | None:
    leaks = evidence.leaks[evidence.leaks["kind"] != "same patient"]
    paths = evidence.samples["path"].to_numpy(object)
    kinds = leaks["kind"].value_counts()
    named = ", ".join(f"{n} {_LEAK_WORDS[str(kind)]}" for kind, n in kinds.items())
    files = sorted({*paths[leaks["test"]].tolist(), *paths[leaks["train"]].tolist()})
    subject = "1 test image is" if len(leaks) == 1 else f"{len(leaks)} test images are"
    message = (
        f"{subject} tied to training images ({named}), so a test score would partly measure memory; "
        "split with split.group_by: auto."
    )
    finding = _finding("leak", "error", files, message, blocking=True)
    return finding.model_copy(update={"count": len(leaks)}) if finding else None


def _patient_leak(evidence: Evidence) -> Finding | None:
    from brainmri_core.copies.leaks import (
        patient_twins,  # pandas, which the names of the checks need not wait for
    )

    side = evidence.samples["split"].to_numpy(object)
    shared = patient_twins(evidence.samples, side == "train", side == "test")
    paths = evidence.samples["path"].to_numpy(object)
    files = sorted({*paths[shared["test"]].tolist(), *paths[shared["train"]].tolist()})
    subject = "1 test image shows" if len(shared) == 1 else f"{len(shared)} test images show"
    message = (
        f"{subject} a patient who is in training, too, so a test score would partly measure recognition of people; "
        "split with split.group_by: auto."
    )
    finding = _finding("patient_leak", "error", files, message, blocking=True)
    return finding.model_copy(update={"count": len(shared)}) if finding else None


_LEAK_WORDS = {"exact": "pixel-identical", "near copy": "near copies", "same group": "of one group"}


def _unlisted_copies(evidence: Evidence) -> Finding | None:
    pairs = evidence.leak.unlisted_pairs
    if not pairs:
        return None
    first = pairs[0]
    turned = f" {orientation_words(first.orientation)}" if first.orientation != "identity" else ""
    subject = "1 test image is a copy" if len(pairs) == 1 else f"{len(pairs)} test images are copies"
    message = (
        f"{subject} of a training image, though the search by fingerprint listed no pair: {printable(first.test_path)} "
        f"is {printable(first.train_path)}{turned}, with a correlation of {first.ncc:.3f}"
        + (", and so on" if len(pairs) > 1 else "")
        + f"; {_remedy(evidence)}. This check looks in all eight orientations at any setting."
    )
    files = sorted({path for pair in pairs for path in (pair.test_path, pair.train_path)})
    finding = _finding("unlisted_copies", "error", files, message, blocking=True)
    return finding.model_copy(update={"count": len(pairs)}) if finding else None


def _remedy(evidence: Evidence) -> str:
    """Say which settings of the search find the unlisted pairs: what was not looked for, and what was missed."""
    searched = evidence.split_record.get("config", {}).get("copies", {}).get("orientations", "all")
    known = {ORIENTATIONS[turn] for turn in SEARCHED[searched]}
    remedies = []
    missed = [pair.orientation in known for pair in evidence.leak.unlisted_pairs]
    if not all(missed):
        remedies.append("set split.copies.orientations to all")
    if any(missed):
        remedies.append("raise split.copies.hash_radius (at most 16) or remove one file of each pair")
    return ", and ".join(remedies) + ", and split again"


def _embedded_metadata(evidence: Evidence) -> Finding | None:
    packed = evidence.packed
    if "has_metadata" not in packed.columns:
        return None
    message = (
        "{n} {carry} EXIF, GPS, comments or similar, which may hold personal data; only pixels are carried on, "
        "but the original files still have it."
    )
    return _finding(
        "embedded_metadata", "warning", packed["path"][packed["has_metadata"].astype(bool)], message
    )


def _shortcuts(evidence: Evidence) -> Finding | None:
    limit = evidence.config.shortcut_auroc
    telling = [
        (value, name, score.features)
        for score in evidence.shortcuts
        for name, value in score.auroc.items()
        if score.features == "file metadata" and value is not None and value >= limit
    ]
    if not telling:
        return None
    named = ", ".join(f"{name} (AUROC {value:.3f})" for value, name, _ in sorted(telling, reverse=True))
    message = (
        f"File metadata alone (size, bytes, mode, aspect) gives the class away: {named}. "
        "A model may score well on these classes without looking at the brain; test it on images from one source."
    )
    return Finding(check="shortcuts", severity="warning", count=len(telling), message=message)


CHECKS: dict[str, tuple[str, Check]] = {
    "unreadable": ("Every image could be decoded.", _unreadable),
    "left_out": ("No folder, ending or share of the images was left out on the way.", _left_out),
    "wrong_size": ("The resized images have the expected size.", _wrong_size),
    "small_file": ("No file is suspiciously small.", _small_file),
    "blank": ("No image is nearly constant, black or white.", _blank),
    "not_mri_like": ("No image looks like a photograph or screenshot.", _not_mri_like),
    "mixed_depths": ("All images have the same number of bits.", _mixed_depths),
    "burnt_in": ("No image has writing or a frame burnt in.", _burnt_in),
    "duplicates": ("How many images have a copy of the same class.", _duplicates),
    "label_conflicts": ("No copies with different labels are in use.", _label_conflicts),
    "label_corrections": ("No image whose label is known to be wrong is in use.", _label_corrections),
    "patient_source": ("What names the patients fits the data set.", _patient_source),
    "patient_classes": ("No known patient has images of two classes.", _patient_classes),
    "large_patient": ("No known patient holds more of a class than the test split's share.", _large_patient),
    "large_group": ("No group of copies or neighbours holds a large share of the images.", _large_group),
    "class_imbalance": ("The classes are of comparable size.", _class_imbalance),
    "class_missing_from_split": ("Every class is in training and in test.", _class_missing),
    "class_missing_from_fold": ("Every class is in every fold.", _class_missing_from_fold),
    "class_shares": ("Every class has about its share in the test split.", _class_shares),
    "class_set_mismatch": ("Classes and sides are those of the mapping.", _class_set_mismatch),
    "leak": ("No test image has a copy or a group member in training.", _leak),
    "patient_leak": ("No test image shows a patient who is known to be in training.", _patient_leak),
    "unlisted_copies": (
        "No looked-up test image is a copy of a training image, in any orientation, that the search did not list.",
        _unlisted_copies,
    ),
    "embedded_metadata": ("No file carries metadata that could hold personal data.", _embedded_metadata),
    "shortcuts": ("File metadata does not give the class away.", _shortcuts),
}
BLOCKING_CHECKS = ("class_set_mismatch", "leak", "patient_leak", "unlisted_copies")


def checks_run(config: ValidateConfig) -> list[str]:
    """Name the checks that run: all, without the look for duplicates where `dup_check` is off."""
    return [name for name in CHECKS if name != "duplicates" or config.dup_check]


def run_checks(evidence: Evidence) -> list[Finding]:
    """Run the checks; worst findings first."""
    results = [CHECKS[name][1](evidence) for name in checks_run(evidence.config)]
    found = [finding for finding in results if finding is not None]
    return sorted(found, key=lambda finding: (not finding.blocking, SEVERITIES.index(finding.severity)))


def _finding(
    check: str, severity: Severity, files: Iterable[str], message: str, *, blocking: bool = False
) -> Finding | None:
    """Return a finding about images, or None without any; {n}, {are} and the like follow their number."""
    named = [str(path) for path in files]
    if not named:
        return None
    one = len(named) == 1
    words = {
        "n": "1 image" if one else f"{len(named)} images",
        "are": "is" if one else "are",
        "were": "was" if one else "were",
        "have": "has" if one else "have",
        "look": "looks" if one else "look",
        "carry": "carries" if one else "carry",
    }
    for word, text in words.items():
        message = message.replace(f"{{{word}}}", text)
    return Finding(
        check=check, severity=severity, count=len(named), message=message, files=named, blocking=blocking
    )
