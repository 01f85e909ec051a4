"""Validate: look for what is wrong with the data, report it with the files, and say whether training may go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from brainmri_core.account import Account, read_account
from brainmri_core.config.data import CopySearchConfig, ValidateConfig
from brainmri_core.cores import threads
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError
from brainmri_core.findings import SEVERITIES, Evidence, Finding, checks_run, run_checks
from brainmri_core.images.pack import open_pack
from brainmri_core.images.statistics import scan_pack, to_gray
from brainmri_core.job import Job
from brainmri_core.layout import Layout, timestamp, utc_now
from brainmri_core.pointers import (
    MappingPointer,
    PackPointer,
    ValidationPointer,
    follow,
    read_mapping,
)
from brainmri_core.reporting.leaks import (
    LeakReport,
    leak_report,
    thumbnail,
)
from brainmri_core.reporting.shortcuts import ShortcutScore, shortcut_scores
from brainmri_core.reporting.validation_html import render_validation_html
from brainmri_core.samples import FETCH_COLUMNS, RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.storage import (
    read_json,
    remove_stale,
    sha256_json,
    staging_folder,
    write_bytes,
    write_json,
)
from brainmri_core.twins import find_leaks, read_copies

U8 = npt.NDArray[np.uint8]

THUMB_SIDE = 64
_PICTURES_PER_FINDING = 6


class ValidationReport(BaseModel):
    """Everything validation found.

    Attributes
    ----------
    passed : bool
        False where a finding is blocking, or at least as severe as `fail_on`.
    counts : dict
        Side to class to number of images, excluded ones too.
    excluded : dict
        Reason to number of images left out.
    checks : list of str
        Checks that ran; one without a finding passed.
    findings : list of Finding
        Worst first.
    gray_ranges, scaled_by : dict
        Of the pack: what turned values of more than 8 bits into gray levels.
    split : dict
        How the split was made and what came of it, as far as it was recorded.
    leak : LeakReport
        Without the gallery, which lies in ``leak.json``.
    account : Account or None
        Where every file of the source is; None in a report of an earlier version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    dataset: str
    run_id: str
    written_at_utc: str
    fail_on: Literal["error", "warning", "never"]
    passed: bool
    classes: list[str]
    n_images: int
    n_packed: int
    size: int
    counts: dict[str, dict[str, int]]
    excluded: dict[str, int]
    gray_ranges: dict[str, tuple[float, float]] = {}
    scaled_by: dict[str, int] = {}
    split: dict[str, str | int | float | dict[str, float] | None]
    checks: list[str]
    findings: list[Finding]
    shortcuts: list[ShortcutScore]
    leak: LeakReport
    account: Account | None = None

    def finding(self, check: str) -> Finding | None:
        """Return what a check found, or None if it found nothing or did not run."""
        return next((finding for finding in self.findings if finding.check == check), None)

    @property
    def severities(self) -> dict[str, int]:
        """Number of findings of each severity."""
        return {name: sum(item.severity == name for item in self.findings) for name in SEVERITIES}


def validate(config: ValidateConfig, pack: PackPointer, job: Job) -> ValidationPointer:
    """Check a pack and its split, and write ``report.json``, ``report.html`` and ``leak.json``.

    The report is written whether or not the data passes; the caller looks at ``passed`` and, where it is False, ends
    with `failure_sentence`.

    Parameters
    ----------
    config : ValidateConfig
        Thresholds, and the least severity that fails.
    pack : PackPointer
        The stored pointer of the packed images.
    job : Job
        The run's place in the project.

    Returns
    -------
    ValidationPointer
        Not written yet.

    Raises
    ------
    ConfigError, MissingUpstreamError
        If `validate.mapping_pointer` names another data set's pointer, or none.
    IntegrityError
        If the pack, its tables or its mapping are damaged or do not belong together.
    """
    layout = job.layout
    target = layout.validation_dir(job.dataset, job.run_id)
    evidence, thumbs, pixels = _gather(config, pack, job)
    report = _report(evidence, run_checks(evidence), job)
    for finding in report.findings:
        log = {"error": job.log.error, "warning": job.log.warning, "info": job.log.info}[finding.severity]
        log(finding.message, check=finding.check, count=finding.count)
    for stale in remove_stale(target.parent) if target.parent.is_dir() else []:
        job.log.info("removed a stale temporary", path=stale.name)
    with staging_folder(target) as folder:
        document = report.model_dump(mode="json", exclude={"leak": {"gallery"}})
        write_json(folder / "report.json", document)
        write_json(folder / "leak.json", evidence.leak.model_dump(mode="json"))
        html = render_validation_html(report, pictures=_pictures(report, evidence.samples, thumbs, pixels))
        write_bytes(folder / "report.html", html.encode())
    job.log.info("validated", passed=report.passed, **report.severities)
    volatile = {"run_id", "written_at_utc"}
    return ValidationPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [pack.content_hash, {name: value for name, value in document.items() if name not in volatile}]
        ),
        written_at_utc=report.written_at_utc,
        report=layout.relative(target / "report.json"),
        passed=report.passed,
        severities=report.severities,
        pack_pointer=pack.pointer_path or "",
    )


def load_report(layout: Layout, pointer: ValidationPointer) -> ValidationReport:
    """Read a validation report with its leak report and gallery.

    Raises
    ------
    IntegrityError
        If a file is missing, damaged, or of another version.
    """
    path = layout.absolute(pointer.report)
    try:
        report = ValidationReport.model_validate(read_json(path))
        leak = LeakReport.model_validate(read_json(path.with_name("leak.json")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise IntegrityError(
            f"{path} is not a validation report: '{'.'.join(map(str, first['loc']))}': {first['msg']}; "
            "run validate again."
        ) from None
    return report.model_copy(update={"leak": leak})


def failure_sentence(report: ValidationReport, page: Path = Path("report.html")) -> str:
    """Say in one sentence why validation failed and where its page lies, or that it passed."""
    if report.passed:
        return f"The validation of {report.dataset} passed."
    grave = [item for item in report.findings if item.fails(report.fail_on)]
    named = "; ".join(f"{item.check}: {item.message.rstrip('.')}" for item in grave[:3])
    more = f"; and {len(grave) - 3} more" if len(grave) > 3 else ""
    remedy = (
        "a leak or a wrong mapping cannot be waved through"
        if any(item.blocking for item in grave)
        else f"mend the data or relax validate.fail_on, now {report.fail_on!r}"
    )
    return f"The validation of {report.dataset} failed ({named}{more}); {page} names every file; {remedy}."


def _report(evidence: Evidence, findings: list[Finding], job: Job) -> ValidationReport:
    samples = evidence.samples
    counts = samples.groupby(["split", "label"]).size()
    reasons = samples["reason"][evidence.excluded].replace("", "no reason given").value_counts()
    return ValidationReport(
        dataset=job.dataset,
        run_id=job.run_id,
        written_at_utc=timestamp(utc_now()),
        fail_on=evidence.config.fail_on,
        passed=not any(item.fails(evidence.config.fail_on) for item in findings),
        classes=evidence.pack.classes,
        n_images=len(samples),
        n_packed=len(evidence.packed),
        size=evidence.pack.size,
        counts={
            str(side): {str(label): int(n) for label, n in counts[side].items()}
            for side in sorted(counts.index.get_level_values(0).unique(), reverse=True)
        },
        excluded={str(reason): int(n) for reason, n in reasons.items()},
        gray_ranges=evidence.pack.gray_ranges,
        scaled_by=evidence.pack.scaled_by,
        split=_split_facts(evidence.split_record),
        checks=checks_run(evidence.config),
        findings=findings,
        shortcuts=evidence.shortcuts,
        leak=evidence.leak,
        account=evidence.account,
    )


def _gather(config: ValidateConfig, pack: PackPointer, job: Job) -> tuple[Evidence, U8, U8]:
    layout = job.layout
    pixels = open_pack(layout, pack)
    samples = read_samples(
        layout.absolute(pack.samples), {**FETCH_COLUMNS, **SPLIT_COLUMNS, **RESIZE_COLUMNS}
    )
    packed = np.flatnonzero(samples["row"].to_numpy() >= 0)
    if not np.array_equal(np.sort(samples["row"].to_numpy()[packed]), np.arange(len(pixels))):
        raise IntegrityError(
            f"The rows of {pack.samples} do not number the {len(pixels)} images of {pack.pack}; run resize again."
        )
    mapping = follow(layout, MappingPointer, pack.mapping_pointer)
    expected = _expected_mapping(config, mapping, job)
    folder = layout.absolute(mapping.samples).parent
    thumbs = read_thumbs(folder, samples, pixels)
    copies = read_copies(folder)
    record = _split_record(layout.absolute(mapping.split_json))
    searched = record.get("config", {}).get("copies", {})
    scan = scan_pack(pixels)
    rows = samples["row"].to_numpy()[packed]
    side = samples["split"].to_numpy(object)
    with threads(1) as beside:  # trees are grown on one core
        scores = beside.submit(
            shortcut_scores, samples.iloc[packed], scan.statistics[rows], pack.classes, seed=job.env.seed
        )
        leak = leak_report(
            samples,
            thumbs,
            copies,
            seed=job.env.seed,
            pack=pixels,
            search=CopySearchConfig.model_validate(searched),
        )
        shortcuts = scores.result()
    evidence = Evidence(
        config=config,
        samples=samples,
        copies=copies,
        scan=scan,
        pack=pack,
        mapping=mapping,
        expected=expected,
        expected_samples=read_samples(layout.absolute(expected.samples), SPLIT_COLUMNS),
        split_record=record,
        leaks=find_leaks(samples, copies, side == "train", side == "test"),
        leak=leak,
        shortcuts=shortcuts,
        account=read_account(samples, mapping, job),
    )
    return evidence, thumbs, pixels


def _expected_mapping(config: ValidateConfig, mapping: MappingPointer, job: Job) -> MappingPointer:
    if config.mapping_pointer is None:
        return mapping
    path = job.layout.configured(config.mapping_pointer)
    if not (path / "latest.json" if path.is_dir() else path).is_file():
        raise MissingUpstreamError(
            f"validate.mapping_pointer names {path}, where there is no mapping pointer; run split first or leave it empty."
        )
    expected = read_mapping(job.layout, path)
    if expected.dataset != job.dataset:
        raise ConfigError(
            f"validate.mapping_pointer is of the data set {expected.dataset}, but this run is about {job.dataset}; "
            "leave it empty to use the run's own."
        )
    return expected


def read_thumbs(folder: Path, samples: pd.DataFrame, pixels: U8) -> U8:
    """Open the thumbnails in a split's folder, or make them from the pack where there are none (a class-folder tree).

    Returns
    -------
    numpy.ndarray
        uint8 ``(len(samples), 64, 64)``.
    """
    path = folder / "thumbs.npy"
    if path.is_file():
        try:
            thumbs = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"The thumbnails {path} cannot be opened ({error}); run split again."
            ) from None
        if thumbs.dtype != np.uint8 or thumbs.shape != (len(samples), THUMB_SIDE, THUMB_SIDE):
            raise IntegrityError(
                f"The thumbnails {path} hold {thumbs.dtype} {thumbs.shape} for {len(samples)} images; run split again."
            )
        return np.asarray(thumbs)
    made = np.zeros((len(samples), THUMB_SIDE, THUMB_SIDE), np.uint8)
    for position, row in enumerate(samples["row"].to_numpy()):
        if row >= 0:
            image = Image.fromarray(to_gray(pixels[row : row + 1])[0])
            made[position] = np.asarray(image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR))
    return made


def _split_record(path: Path) -> dict[str, Any]:
    """Read ``split.json``; a class-folder tree has none."""
    recorded = read_json(path) if path.is_file() else {}
    if not isinstance(recorded, dict):
        raise IntegrityError(f"The record of the split {path} is not a mapping; run split again.")
    return recorded


def _split_facts(record: dict[str, Any]) -> dict[str, str | int | float | dict[str, float] | None]:
    config = record.get("config", {})
    facts = {name: config.get(name) for name in ("strategy", "group_by", "seed", "test_frac")}
    facts |= {name: record.get(name) for name in ("groups", "largest_group", "test_share")}
    moved = record.get("moved_since_previous_split")
    refolded = sum(" to fold" in change for change in (moved or {}).values())
    patients = record.get("patients") or {}
    facts |= {f"patients_{name}": patients.get(name) for name in ("images", "images_unknown", "proxy")}
    return facts | {
        "patients": patients.get("patients"),
        "moved": None if moved is None else len(moved) - refolded,
        "refolded": None if moved is None else refolded,
    }


def _pictures(report: ValidationReport, samples: pd.DataFrame, thumbs: U8, pixels: U8) -> dict[str, str]:
    """Make small pictures of the first files of each finding, by path."""
    position = {path: index for index, path in enumerate(samples["path"])}
    wanted = {path for item in report.findings for path in item.files[:_PICTURES_PER_FINDING]}
    readable = samples["pixel_sha256"].to_numpy(object) != ""
    return {
        path: thumbnail(samples, thumbs, pixels, position[path], side=96)
        for path in sorted(wanted)
        if path in position and readable[position[path]]
    }
