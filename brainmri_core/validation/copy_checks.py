"""Checks of copies, groups and patients, within a side and across sides."""

from __future__ import annotations

import numpy as np

from brainmri_core.copies.likeness import ORIENTATIONS, SEARCHED, orientation_words
from brainmri_core.escaping import printable
from brainmri_core.validation.evidence import Evidence
from brainmri_core.validation.finding import Finding, about_images

LARGE_GROUP_SHARE = 0.03
LARGE_GROUP_LEAST = 10
_LEAK_WORDS = {"exact": "pixel-identical", "near copy": "near copies", "same group": "of one group"}


def duplicates(evidence: Evidence) -> Finding | None:
    """How many images have a copy of the same class."""
    copies = evidence.copies
    same = copies[copies["same_label"]]
    files = sorted({*same["path_a"], *same["path_b"]})
    origin = dict(zip(evidence.samples["path"], evidence.samples["origin"], strict=True))
    across = sum(origin.get(a) != origin.get(b) for a, b in zip(same["path_a"], same["path_b"], strict=True))
    message = (
        f"{{n}} {{have}} a copy of the same class: {len(same)} pairs, {int(same['exact'].sum())} of them "
        f"pixel-identical, {across} between the official folders."
    )
    return about_images("duplicates", "info", files, message)


def label_conflicts(evidence: Evidence) -> Finding | None:
    """No copies with different labels are in use."""
    from brainmri_core.copies import (
        leaks,  # imported here, as pandas is slow to import and the list of checks is not
    )

    samples, copies = evidence.samples, evidence.copies
    files = samples["path"][leaks.label_conflicts(samples, copies, np.ones(len(samples), np.bool_))]
    kept = int(leaks.label_conflicts(samples, copies, ~evidence.excluded).sum())
    if kept:
        message = f"{{n}} {{have}} a copy with another label; {kept} of them are still in use."
        return about_images("label_conflicts", "warning", files, message)
    return about_images(
        "label_conflicts", "info", files, "{n} {have} a copy with another label; no such pair is in use."
    )


def large_group(evidence: Evidence) -> Finding | None:
    """No group of copies or neighbours holds a large share of the images."""
    from brainmri_core.project.sample_table import known_patients

    used = evidence.samples[~evidence.excluded]
    patients = known_patients(used)
    # Images of a known patient count once: they belong together, however many they are.
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
    return about_images("large_group", "warning", files, message)


def leak(evidence: Evidence) -> Finding | None:
    """No test image has a copy or a group member in training."""
    leaks = evidence.leaks[evidence.leaks["kind"] != "same patient"]
    paths = evidence.samples["path"].to_numpy(object)
    kinds = leaks["kind"].value_counts()
    named = ", ".join(f"{n} {_LEAK_WORDS[str(kind)]}" for kind, n in kinds.items())
    files = sorted({*paths[leaks["test"]].tolist(), *paths[leaks["train"]].tolist()})
    message = (
        f"{{n}} {{are}} tied to training images ({named}), so a test score would partly measure memory; "
        "split with split.group_by: auto."
    )
    return about_images("leak", "error", files, message, blocking=True, count=len(leaks), noun="test image")


def patient_leak(evidence: Evidence) -> Finding | None:
    """No test image shows a patient who is known to be in training."""
    from brainmri_core.copies.leaks import patient_twins

    side = evidence.samples["split"].to_numpy(object)
    shared = patient_twins(evidence.samples, side == "train", side == "test")
    paths = evidence.samples["path"].to_numpy(object)
    files = sorted({*paths[shared["test"]].tolist(), *paths[shared["train"]].tolist()})
    message = (
        "{n} {show} a patient who is in training, too, so a test score would partly measure recognition of people; "
        "split with split.group_by: auto."
    )
    return about_images(
        "patient_leak", "error", files, message, blocking=True, count=len(shared), noun="test image"
    )


def unlisted_copies(evidence: Evidence) -> Finding | None:
    """No test image that was compared is a copy of a training image, in any orientation, that the search did not list."""
    pairs = evidence.leak.unlisted_pairs
    if not pairs:
        return None
    first = pairs[0]
    turned = f" {orientation_words(first.orientation)}" if first.orientation != "identity" else ""
    message = (
        f"{{n}} {{are}} {{copies}} of a training image, though the search by fingerprint listed no pair: {printable(first.test_path)} "
        f"is {printable(first.train_path)}{turned}, with a correlation of {first.ncc:.3f}"
        + (", and so on" if len(pairs) > 1 else "")
        + f"; {_remedy(evidence)}. This check looks in all eight orientations at any setting."
    )
    files = sorted({path for pair in pairs for path in (pair.test_path, pair.train_path)})
    return about_images(
        "unlisted_copies", "error", files, message, blocking=True, count=len(pairs), noun="test image"
    )


def _remedy(evidence: Evidence) -> str:
    """Name the settings with which the search would find the unlisted pairs."""
    searched = evidence.split_record.get("config", {}).get("copies", {}).get("orientations", "all")
    known = {ORIENTATIONS[turn] for turn in SEARCHED[searched]}
    remedies = []
    missed = [pair.orientation in known for pair in evidence.leak.unlisted_pairs]
    if not all(missed):
        remedies.append("set split.copies.orientations to all")
    if any(missed):
        remedies.append("raise split.copies.hash_radius (at most 16) or remove one file of each pair")
    return ", and ".join(remedies) + ", and split again"
