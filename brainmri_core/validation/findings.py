"""The list of validation checks, and how they are run."""

from __future__ import annotations

from collections.abc import Callable

from brainmri_core.config.data import ValidateConfig
from brainmri_core.validation import class_checks, copy_checks, image_checks, patient_checks
from brainmri_core.validation.evidence import Evidence
from brainmri_core.validation.finding import SEVERITIES, Finding

Check = Callable[[Evidence], Finding | None]
_IN_ORDER: tuple[Check, ...] = (
    image_checks.unreadable,
    image_checks.left_out,
    image_checks.wrong_size,
    image_checks.small_file,
    image_checks.blank,
    image_checks.not_mri_like,
    image_checks.mixed_depths,
    image_checks.burnt_in,
    copy_checks.duplicates,
    copy_checks.label_conflicts,
    patient_checks.label_corrections,
    patient_checks.patient_source,
    patient_checks.patient_classes,
    patient_checks.large_patient,
    copy_checks.large_group,
    class_checks.class_imbalance,
    class_checks.class_missing_from_split,
    class_checks.class_missing_from_fold,
    class_checks.class_shares,
    class_checks.class_set_mismatch,
    copy_checks.leak,
    copy_checks.patient_leak,
    copy_checks.unlisted_copies,
    image_checks.embedded_metadata,
    class_checks.shortcuts,
)
# By name. The docstring of a check states what holds if it finds nothing; reports print it.
CHECKS: dict[str, tuple[str, Check]] = {check.__name__: (check.__doc__ or "", check) for check in _IN_ORDER}
BLOCKING_CHECKS = ("class_set_mismatch", "leak", "patient_leak", "unlisted_copies")


def checks_run(config: ValidateConfig) -> list[str]:
    """List the checks to run: all, but without the check for duplicates where `dup_check` is off."""
    return [name for name in CHECKS if name != "duplicates" or config.dup_check]


def run_checks(evidence: Evidence) -> list[Finding]:
    """Run the checks and return their findings, worst first."""
    results = [CHECKS[name][1](evidence) for name in checks_run(evidence.config)]
    found = [finding for finding in results if finding is not None]
    return sorted(found, key=lambda finding: (not finding.blocking, SEVERITIES.index(finding.severity)))
