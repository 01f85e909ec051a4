"""Checks of the classes: sizes, sides, folds, and shortcuts."""

from __future__ import annotations

from brainmri_core.validation.evidence import Evidence
from brainmri_core.validation.finding import Finding, about_images

MAX_SHARE_DEVIATION = 0.05


def class_imbalance(evidence: Evidence) -> Finding | None:
    """The classes are of comparable size."""
    counts = evidence.packed["label"].value_counts()
    if len(counts) < 2 or counts.iloc[0] <= evidence.config.max_imbalance * counts.iloc[-1]:
        return None
    message = (
        f"The class {counts.index[0]} has {counts.iloc[0]} images and {counts.index[-1]} only {counts.iloc[-1]}, "
        f"more than {evidence.config.max_imbalance:g} to 1."
    )
    return Finding(check="class_imbalance", severity="warning", count=len(counts), message=message)


def class_missing_from_split(evidence: Evidence) -> Finding | None:
    """Every class is in training and in test."""
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


def class_missing_from_fold(evidence: Evidence) -> Finding | None:
    """Every class is in every fold."""
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


def class_shares(evidence: Evidence) -> Finding | None:
    """Every class has about its share in the test split."""
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


def class_set_mismatch(evidence: Evidence) -> Finding | None:
    """Classes and sides are those of the mapping."""
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
    return about_images("class_set_mismatch", "error", ours.index[differs], message, blocking=True)


def shortcuts(evidence: Evidence) -> Finding | None:
    """File metadata does not give the class away."""
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
