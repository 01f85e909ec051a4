"""Split: find the copies, group related images, and assign each group to training or test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from brainmri_core.arrays import Mask, Objects
from brainmri_core.cluster.workers import Workers, workers_of
from brainmri_core.config.data import SplitConfig, has_extension
from brainmri_core.copies.fingerprint import FingerprintTable
from brainmri_core.copies.fingerprint_shards import fingerprint_on
from brainmri_core.copies.leaks import label_conflicts
from brainmri_core.copies.search import group_copies
from brainmri_core.copies.search_shards import find_copies_on
from brainmri_core.errors import DataError
from brainmri_core.project.foreign_names import shown_name
from brainmri_core.project.job import Job
from brainmri_core.project.pointers import FetchPointer, MappingPointer
from brainmri_core.project.sample_table import FETCH_COLUMNS, content_hash, read_samples, write_samples
from brainmri_core.splitting.assignment import assign_folds, assign_side, independent_units
from brainmri_core.splitting.corrections import correct_labels
from brainmri_core.splitting.export import export_split
from brainmri_core.splitting.groups import image_groups
from brainmri_core.splitting.neighbour_runs import neighbour_pairs
from brainmri_core.splitting.patients import find_patients
from brainmri_core.splitting.predefined import read_predefined
from brainmri_core.splitting.record import (
    Found,
    copies_table,
    export_csv,
    previous_split,
    side_counts,
    split_record,
)
from brainmri_core.system.checksums import sha256_json
from brainmri_core.system.clock import timestamp, utc_now
from brainmri_core.system.json_files import write_json
from brainmri_core.system.storage import atomic_file
from brainmri_core.wording import counted

NO_FOLD = -1
OFFICIAL_COPY = "a copy of it is in the official test folder"


def split(config: SplitConfig, fetched: FetchPointer, job: Job) -> MappingPointer:
    """Group the copies of a data set and split it so that no group is in both training and test.

    Parameters
    ----------
    config : SplitConfig
        Strategy, test share, seed, and what a group is; its seed must be set.
    fetched : FetchPointer
        The data set.
    job : Job
        The run.

    Returns
    -------
    MappingPointer
        Its sample table adds the columns of `sample_table.SPLIT_COLUMNS`; beside it lie ``index_remap.json``,
        ``split.json``, ``split.csv`` (which ``split.strategy: predefined`` replays), ``copies.parquet``,
        ``thumbs.npy`` and ``trimmed_thumbs.npy``.

    Raises
    ------
    DataError
        If the data set is not labelled, a class folder has no canonical class, a class has too few images or only one
        group, copies have different labels and the policy is to fail, or a predefined split does not fit the data.
    """
    job.entry.require_labels("a split")
    table = _labelled(config, fetched, job)
    patients = find_patients(config, table, job)
    table["patient"] = pd.Series(patients.names).replace("", None).astype("str")
    corrections = correct_labels(config, table, job)
    root = job.layout.absolute(fetched.dataset_root)
    with workers_of(job) as workers:
        prints = _fingerprinted(table, root, workers, job)
        _readable_classes(table, job.dataset)
        pairs = find_copies_on(workers, prints, config.copies)
    components, neighbours = group_copies(len(table), pairs), neighbour_pairs(table, prints.thumbs)
    found = Found(prints, pairs, components, neighbours, patients, corrections)
    table["group"] = image_groups(config, table, found)
    for note in patients.notes:
        job.log.warning(note)
    conflicts = _apply_conflicts(config, table, found, job)
    _assign(config, table, found, job)
    report = split_record(config, table, found, conflicts, previous_split(job))
    return _write(config, table, found, report, fetched, job)


def _fingerprinted(table: pd.DataFrame, root: Path, workers: Workers | None, job: Job) -> FingerprintTable:
    """Fingerprint all images, add what the table keeps of it, and exclude those that cannot be read."""
    with tqdm(total=len(table), desc="fingerprints", unit="image", disable=None) as bar:
        prints = fingerprint_on(workers, root, table["path"].tolist(), progress=bar.update)
    table["pixel_sha256"], table["colourfulness"] = prints.pixel_sha256, prints.colourfulness
    table["depth"] = prints.depths
    table["phash"], table["phash_mirrored"] = prints.hashes[:, 0], prints.hashes[:, 1]
    for row, reason in prints.failures.items():
        table.loc[row, ["split", "reason"]] = ("excluded", reason)
        job.log.warning("image excluded", path=table.loc[row, "path"], reason=reason)
    return prints


def _labelled(config: SplitConfig, fetched: FetchPointer, job: Job) -> pd.DataFrame:
    """Read the fetched table and give every image its canonical class."""
    table = read_samples(job.layout.absolute(fetched.samples), FETCH_COLUMNS).sort_values(
        "path", ignore_index=True
    )
    table["found_label"] = table["label"]
    names = {label: job.entry.canonical(label) for label in table["label"].unique()}
    unknown = sorted(label for label, name in names.items() if name is None)
    if unknown:
        count = int((table["label"] == unknown[0]).sum())
        raise DataError(
            f"The folder {shown_name(unknown[0])!r} of {job.dataset} ({counted(count, 'image')}) is none "
            f"of the classes {', '.join(job.entry.classes)}; if it is one of them, add its name to the data set's "
            "aliases in datasets.yaml, else name a folder without it in fetch.subset, or move it away."
        )
    table["label"] = table["label"].map(names)
    table["class_index"] = (
        table["label"].map({name: n for n, name in enumerate(job.entry.classes)}).astype("int64")
    )
    table["split"], table["reason"], table["fold"] = "train", "", NO_FOLD
    wrong = [not has_extension(path, config.exts) for path in table["path"]]
    table.loc[wrong, ["split", "reason"]] = ("excluded", "extension not in split.exts")
    return table


def _included(table: pd.DataFrame) -> Mask:
    mask: Mask = (table["split"] != "excluded").to_numpy()
    return mask


def _readable_classes(table: pd.DataFrame, dataset: str) -> None:
    """Refuse a data set with fewer than two classes, with a class folder of unreadable images, or with a class of one image."""
    for label, part in table.groupby("found_label"):
        if not _included(part).any():
            raise DataError(
                f"The class folder {label!r} of {dataset} holds no readable image ({part['reason'].iloc[0]}); "
                "remove the folder or replace its images."
            )
    counts = table[_included(table)]["label"].value_counts()
    if len(counts) < 2:
        raise DataError(
            f"The data set {dataset} has fewer than two classes ({', '.join(counts.index)}); a classifier needs two."
        )
    for label, count in counts.items():
        if count < 2:
            raise DataError(
                f"The class {label!r} of {dataset} has a single image; add images or remove the class."
            )


def _apply_conflicts(config: SplitConfig, table: pd.DataFrame, found: Found, job: Job) -> list[str]:
    """Find confirmed copies with different labels; exclude them, keep them or fail, as `config` says."""
    rows = np.flatnonzero(label_conflicts(table, copies_table(table, found.pairs), _included(table)))
    paths: list[str] = table["path"].iloc[rows].tolist()
    if not paths:
        return []
    if config.conflicts == "fail":
        raise DataError(
            f"{len(paths)} images of {job.dataset} are copies that carry different labels, the first {paths[0]}; "
            "correct them or set split.conflicts to exclude or keep."
        )
    reason = "a copy carries another label"
    if config.conflicts == "exclude":
        table.loc[rows, ["split", "reason"]] = ("excluded", reason)
    else:
        table.loc[rows, "reason"] = f"kept although {reason}"
    job.log.warning("copies with different labels", images=len(paths), policy=config.conflicts)
    return paths


def _assign(config: SplitConfig, table: pd.DataFrame, found: Found, job: Job) -> None:
    """Set split and fold of every image that is not excluded."""
    if config.strategy == "predefined":
        read_predefined(config, table, found.patients.names, job)
    elif config.strategy == "official":
        _assign_official(config, table, found, job)
    elif config.strategy == "all_test":
        table.loc[_included(table), "split"] = "test"
    elif config.strategy == "pooled":
        _assign_pooled(config, table, found, job)
    given = _keep_validation(config, table)
    _check_losses(config, table, job)
    train = np.flatnonzero((table["split"] == "train").to_numpy() & ~given)
    part = table.iloc[train]
    table.loc[train, "fold"] = assign_folds(
        independent_units(part), part["class_index"].to_numpy(np.int64), config.folds, config.resolved_seed
    )
    for side in ("train", "test"):
        if not (table["split"] == side).any() and config.strategy in ("pooled", "official"):
            raise DataError(
                f"The {side} split of {job.dataset} is empty; change split.test_frac or split.strategy."
            )


def _keep_validation(config: SplitConfig, table: pd.DataFrame) -> Mask:
    """Mark the training images of an official validation folder, and separate the other training images from their groups.

    The marked images get no fold; `assignment.validation_mask` recognises them by that.
    """
    train = (table["split"] == "train").to_numpy()
    given: Mask = train & (table["origin"] == "validation").to_numpy()
    if config.strategy != "official" or not given.any():
        return np.zeros(len(table), np.bool_)
    if config.group_by != "none":
        tied = train & ~given & table["group"].isin(set(table.loc[given, "group"])).to_numpy()
        table.loc[tied, "reason"] = "an image of its group is in the official validation folder"
        if config.official_copies == "drop":
            table.loc[tied, "split"] = "excluded"
        else:
            table.loc[tied, "group"] = table.loc[tied, "group"] + "-official-copy"
    return given


def _check_losses(config: SplitConfig, table: pd.DataFrame, job: Job) -> None:
    """Refuse a split that leaves out every image of a class, or of a class in one of the official folders."""
    keys = ["label", "origin"] if config.strategy == "official" else ["label"]
    for (label, *origin), part in table.groupby(keys):
        if not _included(part).any():
            counts = part["reason"].value_counts().head(3)
            reasons = "; ".join(f"{count} x {reason}" for reason, count in counts.items())
            where = f"{origin[0]} images" if origin else "images"
            raise DataError(
                f"All {len(part)} {where} of the class {label!r} of {job.dataset} are left out ({reasons}); change what "
                "leaves them out, or remove the class."
            )


def _assign_pooled(config: SplitConfig, table: pd.DataFrame, found: Found, job: Job) -> None:
    rows = np.flatnonzero(_included(table))
    part = table.iloc[rows]
    for label, of_class in part.groupby("label"):
        if of_class["group"].nunique() < 2:
            who, remedy = _whose(found.patients.names[of_class.index], len(of_class))
            raise DataError(
                f"The class {label!r} of {job.dataset} lives in one group{who}, so it cannot be on both sides; {remedy}, "
                "or remove the class."
            )
    largest = part["group"].value_counts()
    if len(largest) and largest.iloc[0] > max(config.test_frac, 1 - config.test_frac) * len(part):
        who, remedy = _whose(found.patients.names[rows[part["group"] == largest.index[0]]], largest.iloc[0])
        raise DataError(
            f"One group{who} holds {largest.iloc[0]} of the {len(part)} images of {job.dataset}, more than a whole side; "
            f"{remedy}."
        )
    test = assign_side(
        part["group"].tolist(),
        part["class_index"].to_numpy(np.int64),
        config.test_frac,
        config.resolved_seed,
        "test",
    )
    table.loc[rows[test], "split"] = "test"


def _whose(names: Objects, images: int) -> tuple[str, str]:
    """Return the patient of a group, where all its images are known to be of one, and a remedy for its size."""
    one = set(names)
    if len(one) == 1 and one != {""}:
        who = f", the patient {names[0]} with {images} images"
        return (
            who,
            "add images of other patients or correct what names the patients, if these are several people",
        )
    return "", "add images of other patients or raise split.copies.ncc_threshold"


def _assign_official(config: SplitConfig, table: pd.DataFrame, found: Found, job: Job) -> None:
    origin = table["origin"].to_numpy(object)
    if not {"training", "testing"} <= set(origin):
        raise DataError(
            f"The data set {job.dataset} has no Training and Testing folders; set split.strategy to pooled or predefined."
        )
    included = _included(table)
    table.loc[included & (origin == "testing"), "split"] = "test"
    if config.group_by == "none":
        return
    test = (table["split"] == "test").to_numpy()
    tied = included & ~test & table["group"].isin(set(table.loc[test, "group"])).to_numpy()
    table.loc[tied, "reason"] = "an image of its group is in the official test folder"
    names = found.patients.names
    if config.group_by in ("auto", "patient"):
        theirs = tied & np.isin(names.astype(str), list(set(names[test]) - {""}))
        table.loc[theirs, "reason"] = "its patient is in the official test folder"
    copies = tied & np.isin(found.components, found.components[test])
    table.loc[copies, "reason"] = OFFICIAL_COPY
    if config.official_copies == "drop":
        table.loc[tied, "split"] = "excluded"
    else:
        # The user wants these copies to stay in training; a group name of their own keeps every group on one side.
        table.loc[tied, "group"] = table.loc[tied, "group"] + "-official-copy"
    job.log.info(
        "official folders",
        copies_in_training=int(copies.sum()),
        tied_in_training=int(tied.sum()),
        policy=config.official_copies,
    )


def _write(
    config: SplitConfig,
    table: pd.DataFrame,
    found: Found,
    report: dict[str, Any],
    fetched: FetchPointer,
    job: Job,
) -> MappingPointer:
    target = job.layout.mapping_dir(job.dataset, job.run_id)
    classes = job.entry.classes
    remap = {name: index for index, name in enumerate(classes)}
    counts = side_counts(table, classes)
    with job.staged(target) as staging:
        write_samples(staging / "samples.parquet", table)
        write_samples(staging / "copies.parquet", copies_table(table, found.pairs))
        for name, thumbs in (
            ("thumbs", found.prints.thumbs),
            ("trimmed_thumbs", found.prints.trimmed_thumbs),
        ):
            with atomic_file(staging / f"{name}.npy") as handle:
                np.save(handle, thumbs)
        write_json(staging / "index_remap.json", remap)
        write_json(staging / "split.json", {"counts": counts, **report})
        export_csv(table, staging / "split.csv")
    if config.dest is not None:
        export_split(
            table, job.layout.absolute(fetched.dataset_root), job.layout.configured(config.dest), config, job
        )
    moved = report["moved_since_previous_split"] or {}
    job.log.info(
        "split",
        train=sum(counts["train"].values()),
        test=sum(counts["test"].values()),
        excluded=sum(counts["excluded"].values()),
        groups=report["groups"],
        copies=report["copies"]["confirmed_pairs"],
        moved=sum(" to fold" not in change for change in moved.values()),
        refolded=sum(" to fold" in change for change in moved.values()),
    )
    relative = job.layout.relative
    return MappingPointer(
        dataset=job.dataset,
        run_id=job.run_id,
        content_hash=sha256_json(
            [content_hash(table, ["path", "label", "split", "group", "fold"]), fetched.content_hash]
        ),
        classes=list(classes),
        num_classes=len(classes),
        index_remap=remap,
        path=relative(target / "index_remap.json"),
        written_at_utc=timestamp(utc_now()),
        samples=relative(target / "samples.parquet"),
        dataset_root=fetched.dataset_root,
        split_json=relative(target / "split.json"),
        fetch_pointer=fetched.pointer_path,
        counts=counts,
    )
