"""Checks of patients, and of labels known to be wrong."""

from __future__ import annotations

import numpy as np

from brainmri_core.validation.evidence import Evidence
from brainmri_core.validation.finding import Finding, Severity, about_images


def label_corrections(evidence: Evidence) -> Finding | None:
    """No image whose label is known to be wrong is in use."""
    samples, record = evidence.samples, evidence.split_record
    known: dict[str, dict[str, str]] = record.get("label_corrections") or {}
    if not known:
        return None
    policy = record.get("config", {}).get("corrections", "exclude")
    named = samples[samples["path"].isin(list(known))]
    used = int((named["split"] != "excluded").sum())
    severity: Severity = "info"
    use = "none is in use"
    if policy == "apply":
        use = f"{used} are used under the right one"
    elif used:
        severity, use = "warning", f"{used} of them are still in use"
    message = f"{{n}} {{are}} filed under a wrong class; {use}."
    return about_images("label_corrections", severity, list(known), message)


def patient_classes(evidence: Evidence) -> Finding | None:
    """No known patient has images of two classes."""
    from brainmri_core.project.sample_table import known_patients  # pandas, as in copy_checks

    used = evidence.samples[~evidence.excluded]
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
    return about_images("patient_classes", "info", used["path"][classes > 1], text)


def large_patient(evidence: Evidence) -> Finding | None:
    """No known patient holds more of a class than the test split's share."""
    from brainmri_core.project.sample_table import known_patients

    share = evidence.split_record.get("config", {}).get("test_frac")
    used = evidence.samples[~evidence.excluded]
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
        f"test split's share of {share:.0%}: the score of the class depends heavily on that one person; add images of other "
        "patients."
    )
    theirs = (patients == patient) & (used["label"] == label).to_numpy(np.bool_)
    return about_images("large_patient", "warning", used["path"][theirs], text)


def patient_source(evidence: Evidence) -> Finding | None:
    """The sources of patients fit the data set."""
    notes = (evidence.split_record.get("patients") or {}).get("notes") or []
    if not notes:
        return None
    return Finding(check="patient_source", severity="warning", count=len(notes), message=" ".join(notes))
