"""What validation says of patients and of labels known to be wrong: how bad it is, the images, and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Remark = tuple[Literal["warning", "info"], list[str], str]


def wrong_labels(samples: pd.DataFrame, record: dict[str, Any]) -> Remark | None:
    """Name the images whose label is known to be wrong, and say whether they are in use."""
    known: dict[str, dict[str, str]] = record.get("label_corrections") or {}
    if not known:
        return None
    policy = record.get("config", {}).get("corrections", "exclude")
    named = samples[samples["path"].isin(list(known))]
    used = int((named["split"] != "excluded").sum())
    if policy == "apply":
        return (
            "info",
            list(known),
            f"{{n}} {{are}} filed under a wrong class; {used} are used under the right one.",
        )
    if used:
        return (
            "warning",
            list(known),
            f"{{n}} {{are}} filed under a wrong class; {used} of them are still in use.",
        )
    return "info", list(known), "{n} {are} filed under a wrong class; none is in use."


def two_classes(samples: pd.DataFrame) -> Remark | None:
    """Name the images of patients who have images of more than one class, which is possible and seldom."""
    from brainmri_core.project.sample_table import (
        known_patients,
    )  # pandas, which the names of the checks need not wait for

    used = samples[samples["split"] != "excluded"]
    patients = known_patients(used)
    used, patients = used[patients != ""], patients[patients != ""]
    classes = used["label"].groupby(patients).transform("nunique").to_numpy()
    if not (classes > 1).any():
        return None
    names = sorted(set(patients[classes > 1]))
    who = (
        f"the patient {names[0]} has"
        if len(names) == 1
        else f"{len(names)} patients, {names[0]} the first, have"
    )
    text = f"{{n}} {{are}} of patients with more than one class: {who} images of several; is a label wrong?"
    return "info", used["path"][classes > 1].tolist(), text


def large_patients(samples: pd.DataFrame, record: dict[str, Any]) -> Remark | None:
    """Name the images of a patient who holds more of a class than the test split should."""
    from brainmri_core.project.sample_table import known_patients

    share = record.get("config", {}).get("test_frac")
    used = samples[samples["split"] != "excluded"]
    patients = known_patients(used)
    if share is None or not (patients != "").any():
        return None
    counts = used[patients != ""].groupby([patients[patients != ""], "label"]).size()
    shares = counts / used["label"].value_counts().reindex(counts.index.get_level_values(1)).to_numpy()
    if shares.max() <= share:
        return None
    patient, label = shares.idxmax()
    text = (
        f"One patient, {patient}, holds {counts[patient, label]} of the images of {label}, {shares.max():.0%}, more than the "
        f"test split's share of {share:.0%}: the score of the class says much of that one person; add images of other "
        "patients."
    )
    theirs = (patients == patient) & (used["label"] == label).to_numpy(np.bool_)
    return "warning", used["path"][theirs].tolist(), text
