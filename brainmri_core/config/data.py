"""Configs of the stages that handle data: fetch, split, resize and validate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from brainmri_core.config.base import LATER, SeededConfig, StageConfig
from brainmri_core.config.formats import ENDINGS, SCAN_ENDINGS, SLICE

DEEP = ("16-bit", "32-bit", "float")
"""Sample depths whose files need not declare which values are black and white."""

Extensions = Annotated[
    Literal["all"] | list[str],
    Field(description="Endings of the files to use, or 'all' for every image that can be read."),
]


def has_extension(path: str, wanted: Literal["all"] | list[str]) -> bool:
    """Say whether an `exts` setting accepts a file; 'all' accepts every file, whatever its ending."""
    file = SLICE.sub("", path)
    return wanted == "all" or file.lower().endswith(tuple(item.lower() for item in wanted))


class _WithExtensions(StageConfig):
    exts: Extensions = "all"

    @field_validator("exts")
    @classmethod
    def _known_extensions(cls, value: Literal["all"] | list[str]) -> Literal["all"] | list[str]:
        if value != "all":
            known = (*ENDINGS, *SCAN_ENDINGS)
            if not value or not {item.lower() for item in value} <= set(known):
                raise ValueError(f"use 'all' or a list out of {', '.join(known)}")
        return value


class ArchiveLimits(StageConfig):
    """Upper limits of an archive; a larger one is refused before a byte is written."""

    max_archive_bytes: int = Field(20_000_000_000, ge=1, description="Size of the archive.")
    max_files: int = Field(200_000, ge=1, description="Files and folders in the archive together.")
    max_total_bytes: int = Field(50_000_000_000, ge=1, description="Unpacked size of all entries together.")
    max_file_bytes: int = Field(500_000_000, ge=1, description="Unpacked size of one entry.")
    max_ratio: float = Field(200.0, ge=1, description="Unpacked to packed size of one entry.")


class RetryConfig(StageConfig):
    """How a download deals with a bad connection."""

    attempts: int = Field(6, ge=1, le=50, description="Tries without progress before giving up.")
    base_delay_s: float = Field(1.0, ge=0, le=60, description="First pause in seconds; it doubles each time.")
    max_delay_s: float = Field(60.0, ge=0, le=3600, description="Longest pause of our own in seconds.")
    max_retry_after_s: float = Field(
        600.0, ge=0, le=86_400, description="Longest pause in seconds that a server may ask for."
    )
    timeout_s: float = Field(30.0, gt=0, le=600, description="Seconds without a byte that count as a stall.")


class SecondSiteConfig(StageConfig):
    """What the second synthetic data set has in common with the first one."""

    shared_subjects: int = Field(2, ge=0, le=2000, description="Subjects of each class who are on both.")
    copies_per_kind: int = Field(
        12, ge=0, le=1000, description="Planted copies of the first one's images: exact, turned, re-encoded."
    )
    label_conflicts: int = Field(
        4, ge=0, le=1000, description="Planted copies filed under another class than in the first one."
    )


class PhantomConfig(StageConfig):
    """The built-in synthetic data set: how many subjects, and which copies are planted among their slices."""

    seed: int = Field(
        7, ge=0, le=2**32 - 1, description="Seed of the generator; the same seed gives the same bytes."
    )
    subjects_per_class: int = Field(24, ge=2, le=2000, description="Synthetic subjects of each class.")
    slices_per_subject: int = Field(6, ge=1, le=30, description="Slices of each subject.")
    test_frac: float = Field(0.2, gt=0, lt=1, description="Share of the slices filed under Testing.")
    copies_per_kind: int = Field(16, ge=0, le=1000, description="Planted copies of each kind.")
    label_conflicts: int = Field(6, ge=0, le=1000, description="Planted copies filed under another class.")
    second_site: SecondSiteConfig = SecondSiteConfig()


class SlicesConfig(StageConfig):
    """Which slices of a DICOM, NIfTI or MATLAB file become images. The outermost slices mostly show no brain."""

    share: float = Field(0.5, gt=0, le=1, description="Central share of a file's slices; 1 takes all.")
    every: int = Field(1, ge=1, le=4096, description="Take every n-th of them.")
    whole_up_to: int = Field(
        10, ge=0, le=4096, description="Take a file of up to this many slices whole, whatever the share."
    )

    def chosen(self, count: int) -> range:
        """Return the positions, from 0, of the slices to take out of `count`."""
        taken = count if count <= self.whole_up_to else max(1, round(self.share * count))
        first = (count - taken) // 2
        return range(first, first + taken, self.every)


class FetchConfig(StageConfig):
    """Bring a data set to the local disk."""

    dataset: str | None = Field(None, description="Data set as owner/slug; empty means the partition.")
    cache_dir: str = Field("data", min_length=1, description="Folder for downloads and unpacked data sets.")
    write_pointer: bool = Field(True, description="Update the pointer's latest.json besides its history.")
    archive: str | None = Field(None, description="Local zip or folder to use as if Kaggle had delivered it.")
    subset: str | None = Field(
        None, description="Folder inside the data set to use where it holds several trees of class folders."
    )
    slices: SlicesConfig = SlicesConfig()
    labels_csv: str | None = Field(
        None,
        description="CSV with path and label of each image or scan, instead of class folders; a path of the project, or "
        "of a file inside the data set.",
    )
    modified_before: float | None = Field(
        None,
        ge=0,
        description="Of a folder without labels, take only files last changed before this time (seconds since 1970): the "
        "sensor sets it, so that none is taken half-written.",
    )
    version: int | None = Field(None, ge=1, description="Kaggle version to pin; empty means the current one.")
    offline: bool = Field(False, description="Never use the network; take what the cache holds.")
    retry: RetryConfig = RetryConfig()
    limits: ArchiveLimits = ArchiveLimits()
    phantom: PhantomConfig = PhantomConfig()


class CopySearchConfig(StageConfig):
    """When two images count as copies of each other: the hash finds candidates, a comparison of pixels confirms them."""

    hash_radius: int = Field(8, ge=0, le=16, description="Hamming radius of the 64-bit perceptual hash.")
    ncc_threshold: float = Field(0.975, gt=0, le=1, description="Least correlation of the 64x64 versions.")
    max_difference: float = Field(
        0.35,
        gt=0,
        description="What may remain between two copies after their gray levels are matched, in standard deviations; "
        "neighbouring slices differ by more.",
    )
    orientations: Literal["identity", "mirror", "all"] = Field(
        "all",
        description="Orientations tried: as it is, mirrored left-right too, or all eight: mirrored and turned by 0, "
        "90, 180 and 270 degrees.",
    )


class SplitConfig(_WithExtensions, SeededConfig):
    """Decide which image serves for training and which for testing."""

    dataset: str | None = Field(None, description="Data set as owner/slug; empty means the partition.")
    strategy: Literal["pooled", "official", "predefined", "all_train", "all_test"] = Field(
        "pooled",
        description="Pool all images and split anew, keep the official folders, read a CSV, or use one side only.",
    )
    test_frac: float = Field(0.25, gt=0, lt=1, description="Share of each class in the test split.")
    seed: int | None = Field(None, ge=0, description="Seed of the split; empty means env.seed.")
    group_by: Literal["auto", "patient", "subject", "near_duplicate", "exact", "none"] = Field(
        "auto",
        description="What is kept on one side. auto: copies, the images of a known patient, and where the patient is "
        "unknown runs of neighbours that look alike; patient: copies and known patients; subject: copies and runs of "
        "neighbours; near_duplicate: copies; exact: exact copies; none: nothing. With exact and none copies may cross, "
        "which validation shows and never lets pass to training.",
    )
    patients_csv: str | None = Field(
        None,
        description="CSV with path and patient (or group); empty means the table of the catalogue entry, if it has one.",
    )
    patient_pattern: str | None = Field(
        None,
        description="Regular expression with a group named patient, searched in each path: (?P<patient>P[0-9]+)_ for one.",
    )
    corrections: Literal["exclude", "apply", "ignore"] = Field(
        "exclude",
        description="What to do with images whose label the catalogue entry's label_corrections say is wrong.",
    )
    copies: CopySearchConfig = CopySearchConfig()
    conflicts: Literal["exclude", "keep", "fail"] = Field(
        "exclude", description="What to do with copies that carry different labels."
    )
    official_copies: Literal["drop", "keep"] = Field(
        "drop",
        description="Strategy official: drop the training copies of test images, or keep and mark them, which shows "
        "the leak but never passes validation.",
    )
    predefined_csv: str | None = Field(
        None, description="Strategy predefined: CSV with path, split and group."
    )
    folds: int = Field(5, ge=2, le=20, description="Folds of the training side for cross-validation.")
    dest: str | None = Field(None, description="Also export the split as a class-folder tree to this folder.")
    clear_dest: bool = Field(True, description="Empty the export folder first; otherwise it must be empty.")


class ResizeConfig(_WithExtensions):
    """Bring every image to one size and pack the pixels."""

    in_dir: str | None = Field(None, description="Class-folder tree to use where no mapping pointer exists.")
    out_dir: str = Field("data/training_resized", min_length=1, description="Folder of the packs.")
    size: int = Field(224, ge=16, le=1024, description="Side of the square images in pixels.")
    fit: Literal["letterbox", "stretch"] = Field(
        "letterbox", description="Keep the aspect ratio with a black border, or not."
    )
    color: Literal["auto", "gray", "rgb"] = Field(
        "auto", description="Channels of the pack; auto: gray unless an image has colour."
    )
    gray_ranges: dict[str, tuple[float, float]] = Field(
        {},
        description="Values shown as black and white, by depth (16-bit, 32-bit, float), for files of more than 8 bits "
        "that declare none; empty: measured on the data set.",
    )

    @field_validator("gray_ranges")
    @classmethod
    def _black_below_white(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        if not all(low < high for low, high in value.values()) or not set(value) <= set(DEEP):
            raise ValueError(f"give [black, white] with black below white, for {', '.join(DEEP)}")
        return value

    export_tree: str | None = Field(
        None, description="Also export the resized images as a class-folder tree."
    )
    shard_mib: int = Field(
        4096,
        ge=0,
        le=1 << 20,
        json_schema_extra=LATER,
        description="A pack above this size in MiB is several files, which are read as one; 0: always one file.",
    )


class ValidateConfig(StageConfig):
    """Look for what is wrong with the data before a model learns it."""

    in_dir: str | None = Field(None, description="Class-folder tree to use where no pack pointer exists.")
    mapping_pointer: str | None = Field(
        None, description="Mapping pointer (file or folder) to use instead of the upstream's."
    )
    size: int | None = Field(
        None, ge=16, le=1024, description="Expected side in pixels; empty means the pack's."
    )
    fail_on: Literal["error", "warning", "never"] = Field(
        "error", description="Least severity that fails the stage."
    )
    warn_low_std: float = Field(
        3.0, ge=0, le=127, description="Gray-level standard deviation under which an image counts as blank."
    )
    min_file_bytes: int = Field(1024, ge=0, description="Files smaller than this are suspicious.")
    dup_check: bool = Field(True, description="Report copies within and across classes and splits.")
    max_imbalance: float = Field(10.0, ge=1, description="Largest to smallest class, above which to warn.")
    shortcut_auroc: float = Field(
        0.9, gt=0.5, le=1, description="AUROC of metadata alone, above which to warn."
    )
