"""Validate: check the data for defects, report each with its files, and decide whether training may start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.arrays import U8
from brainmri_core.config.data import ValidateConfig
from brainmri_core.copies.leaks import find_leaks, read_copies
from brainmri_core.copies.thumbs import read_thumbs
from brainmri_core.errors import ConfigError, IntegrityError, MissingUpstreamError
from brainmri_core.images.pack import open_pack
from brainmri_core.images.statistics import scan_pack
from brainmri_core.pages.validation_page import render_validation_html
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import find_mapping, follow
from brainmri_core.project.pointers import MappingPointer, PackPointer, ValidationPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, RESIZE_COLUMNS, SPLIT_COLUMNS, read_samples
from brainmri_core.splitting.record import copy_limits, read_split_record
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json
from brainmri_core.system.storage import write_bytes
from brainmri_core.system.threads import outcome, threads
from brainmri_core.validation.accounting import read_account
from brainmri_core.validation.evidence import Evidence
from brainmri_core.validation.finding import Finding
from brainmri_core.validation.findings import checks_run, run_checks
from brainmri_core.validation.leak_report import (
    leak_report,
    thumbnail,
)
from brainmri_core.validation.report import ValidationReport
from brainmri_core.validation.shortcuts import shortcut_scores

_PICTURES_PER_FINDING = 6


def validate(config: ValidateConfig, pack: PackPointer, job: Job) -> ValidationPointer:
    """Check a pack and its split, and write ``report.json``, ``report.html`` and ``leak.json``.

    The report is written whether or not the data passes; the caller checks ``passed`` and, where it is False, stops with
    `failure_sentence`.

    Parameters
    ----------
    config : ValidateConfig
        Thresholds, and the least severity that fails.
    pack : PackPointer
        The stored pointer of the packed images.
    job : Job
        The run.

    Returns
    -------
    ValidationPointer
        A new pointer, not written yet.

    Raises
    ------
    ConfigError
        If `validate.mapping_pointer` names a pointer of another data set.
    MissingUpstreamError
        If `validate.mapping_pointer` names no pointer.
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
    with job.staged(target) as folder:
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
    record = read_split_record(layout.absolute(mapping.split_json))
    scan = scan_pack(pixels)
    rows = samples["row"].to_numpy()[packed]
    side = samples["split"].to_numpy(object)
    # the trees of the shortcut scores use one core, so they run beside the leak report
    with threads(1) as beside:
        scores = beside.submit(
            shortcut_scores, samples.iloc[packed], scan.statistics[rows], pack.classes, seed=job.env.seed
        )
        leak = leak_report(
            samples,
            thumbs,
            copies,
            seed=job.env.seed,
            pack=pixels,
            search=copy_limits(record),
        )
        shortcuts = outcome(scores)
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
    expected = find_mapping(job.layout, config.mapping_pointer)
    if expected is None:
        raise MissingUpstreamError(
            f"validate.mapping_pointer names {job.layout.configured(config.mapping_pointer)}, where there is no mapping pointer; "
            "run split first or leave it empty."
        )
    if expected.dataset != job.dataset:
        raise ConfigError(
            f"validate.mapping_pointer is of the data set {expected.dataset}, but this run is about {job.dataset}; "
            "leave it empty to use the run's own."
        )
    return expected


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
