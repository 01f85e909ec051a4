"""Pointers: the content of the small JSON files that lead to each stage's result."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from brainmri_core.config.base import Precision


class Pointer(BaseModel):
    """The fields that all pointers share. Paths are relative to the project root, in POSIX form.

    Attributes
    ----------
    content_hash : str
        SHA-256 of the result; Dagster's data version of the asset.
    pointer_path : str or None
        The pointer's own history copy, set when the pointer is written; other pointers refer to it by this path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]

    dataset: str
    run_id: str
    content_hash: str
    pointer_path: str | None = None

    @property
    def place(self) -> str:
        """Name of the pointer's folder, below that of its kind."""
        return self.dataset


class FetchPointer(Pointer):
    """Where a fetched data set lies."""

    kind: ClassVar[str] = "fetch"

    dataset_root: str
    training_dir: str | None
    testing_dir: str | None
    version: int | None
    fetched_at_utc: str
    samples: str
    n_images: int
    total_bytes: int
    class_counts: dict[str, int]
    source: str
    licence: str
    last_updated: str | None = None
    archive_sha256: str | None = None
    validation_dir: str | None = None
    n_files: int | None = Field(
        None, description="files of the source, images or not, and the slices of its scans"
    )
    n_slices: int = Field(0, description="slices that scans were taken apart into; each is an image")
    left_out: dict[str, int] = Field(default_factory=dict, description="kind of file left out -> files")

    def same_files(self, other: FetchPointer) -> bool:
        """Say whether both were fetched from one archive, or hold the same files."""
        one_archive = self.archive_sha256 is not None and self.archive_sha256 == other.archive_sha256
        return one_archive or self.content_hash == other.content_hash


class MappingPointer(Pointer):
    """Which image is on which side, and which class has which index."""

    kind: ClassVar[str] = "mapping"

    classes: list[str]
    num_classes: int
    index_remap: dict[str, int] | None
    path: str
    written_at_utc: str
    samples: str
    dataset_root: str
    split_json: str
    fetch_pointer: str | None
    counts: dict[str, dict[str, int]] = Field(description="split -> class -> images")


class PackPointer(Pointer):
    """The packed pixels of a split."""

    kind: ClassVar[str] = "pack"

    written_at_utc: str
    pack: str
    pack_sha256: str
    samples: str
    size: int
    channels: int
    n_images: int
    mapping_pointer: str
    classes: list[str]
    fit: Literal["letterbox", "stretch"]
    gray_ranges: dict[str, tuple[float, float]] = Field(
        {}, description="depth -> values of black and white, for files of more than 8 bits that declare none"
    )
    scaled_by: dict[str, int] = Field(
        {}, description="what turned values of more than 8 bits into gray levels -> images"
    )
    shard_bytes: int = Field(
        0,
        ge=0,
        multiple_of=1 << 20,
        description="bytes of each file of the pack but the last; 0: it is one file",
    )


class ValidationPointer(Pointer):
    """A validation report."""

    kind: ClassVar[str] = "validation"

    written_at_utc: str
    report: str
    passed: bool
    severities: dict[str, int]
    pack_pointer: str

    @property
    def page(self) -> str:
        """The report as an HTML page, beside the JSON file."""
        return PurePosixPath(self.report).with_name("report.html").as_posix()


class CheckpointPointer(Pointer):
    """A trained checkpoint."""

    kind: ClassVar[str] = "checkpoint"

    written_at_utc: str
    checkpoint: str
    checkpoint_sha256: str
    history: str
    curves: str | None
    model_name: str
    best_epoch: int
    epochs_run: int
    val_macro_f1: float
    precision: Precision | None = Field(
        None, description="arithmetic of the training; none where it was not recorded"
    )
    pack_pointer: str
    experiment: str = Field("default", description="experiment that the training was part of")
    recipe: str | None = Field(
        None, description="SHA-256 of the settings that decide the training; none where it was not recorded"
    )
    tracking: str | None = Field(
        None, description="where an experiment tracker shows the training: folder or URL"
    )


class EvaluationPointer(Pointer):
    """One evaluation of a checkpoint."""

    kind: ClassVar[str] = "evaluation"

    written_at_utc: str
    folder: str
    metrics: str
    predictions: str
    report: str
    headline: dict[str, float | None]
    checkpoint_pointer: str | None
    pack_pointer: str | None = Field(None, description="the pack whose test images were measured")
    inference: str | None = Field(
        None, description="arithmetic of the forward pass, and whether mirror images were averaged"
    )
    test_split: str | None = Field(None, description="the test split in the ledger; none for a fold")


class FoldPackPointer(PackPointer):
    """A pack as one fold sees it: the fold is the test side, and the images of the real test side are excluded."""

    kind: ClassVar[str] = "fold_pack"


class FoldCheckpointPointer(CheckpointPointer):
    """A checkpoint trained without one fold."""

    kind: ClassVar[str] = "fold_checkpoint"


class FoldEnsemblePointer(CheckpointPointer):
    """The checkpoints of all folds as one ensemble."""

    kind: ClassVar[str] = "fold_ensemble"


class FoldEvaluationPointer(EvaluationPointer):
    """The evaluation of a fold's checkpoint on that fold."""

    kind: ClassVar[str] = "fold_evaluation"


class CrossValidationPointer(Pointer):
    """All folds of a data set together."""

    kind: ClassVar[str] = "cross_validation"

    written_at_utc: str
    folder: str
    metrics: str
    predictions: str
    headline: dict[str, float | None]
    fold_checkpoints: list[str]
    pack_pointer: str
    recipe: str | None = Field(None, description="that of every fold's checkpoint; none where they differ")
    inference: str | None = Field(None, description="that of every fold's evaluation; none where they differ")
    test_split: str | None = Field(None, description="the test split in the ledger that the ensemble called")


class EmbeddingsPointer(Pointer):
    """The features of all images of a pack by a frozen network, and the score of a probe on them over the folds."""

    kind: ClassVar[str] = "embeddings"

    written_at_utc: str
    folder: str
    metrics: str
    predictions: str | None = Field(description="of the probe, out of fold; none where there is no score")
    features: str
    features_sha256: str
    record: str = Field(description="what made the features")
    model_name: str
    depths: int
    pretrained: bool = Field(description="whether somebody has trained the network's weights")
    weights_sha256: str = Field(description="SHA-256 of the network's weights")
    images: int
    width: int = Field(description="features of an image")
    headline: dict[str, float | None]
    reason: str | None = Field(None, description="why the probe has no score; none where it has one")
    pack_pointer: str
    pack_sha256: str


class LeaderboardPointer(Pointer):
    """The experiments of a data set, ranked."""

    kind: ClassVar[str] = "leaderboard"

    written_at_utc: str
    folder: str
    table: str
    plot: str
    experiments: int
    ranked_by: Literal["out_of_fold", "validation", "external_worst", "external_mean"] | None = Field(
        None, description="predictions that the order rests on; none: of an older version, the test split"
    )


class ChampionPointer(Pointer):
    """The decision on the newest challenger, and who holds the title after it."""

    kind: ClassVar[str] = "champion"

    written_at_utc: str
    champion_checkpoint: str
    challenger_checkpoint: str
    weights: str
    crowned: bool
    reason: str
    decision: str


class ExternalEvaluationPointer(Pointer):
    """One evaluation of a checkpoint on a data set, `dataset`, that it was not trained on."""

    kind: ClassVar[str] = "external_evaluation"

    written_at_utc: str
    trained_on: str
    folder: str
    metrics: str
    predictions: str
    report: str
    headline: dict[str, float | None]
    images: int = Field(
        description="images scored: of classes the model knows, without those it may have seen"
    )
    taken_out: int = Field(description="images that the model may have seen")
    reason: str | None = Field(None, description="why there is no score; none where there is one")
    checkpoint_sha256: str
    checkpoint_pointer: str | None = Field(description="none for a file that no training here has left")
    evaluation_pointer: str | None = Field(description="the evaluation on its own data, if there is one")
    pack_pointer: str | None

    @property
    def place(self) -> str:
        """Name of the pointer's folder: one for each pair of data sets."""
        return pair_place(self.trained_on, self.dataset)


def pair_place(trained_on: str, evaluated_on: str) -> str:
    """Return the folder of a pair's pointers, below that of their kind; no data set's key holds a ``+``."""
    return f"{evaluated_on}+{trained_on.replace('/', '+')}"


class GeneralisationPointer(Pointer):
    """The external evaluations of all pairs of data sets side by side; its data set stands for all of them."""

    kind: ClassVar[str] = "generalisation"

    written_at_utc: str
    folder: str
    table: str
    plot: str
    report: str
    pairs: int
    scored: int = Field(description="pairs with a score")
    best: str | None = Field(description="data set of the model whose worst score elsewhere is highest")
    best_worst: float | None
    best_mean: float | None


class BatchPredictionPointer(Pointer):
    """The predictions of all images of a data set."""

    kind: ClassVar[str] = "batch_predictions"

    written_at_utc: str
    folder: str
    predictions: str
    predictions_sha256: str
    report: str
    fetch_pointer: str
    checkpoint_pointer: str | None = Field(None, description="none for a file that no training here has left")
    model_sha256: str = Field(description="SHA-256 of the checkpoint's file")
    trained_on: str = Field(description="data set that the model was trained on")
    images: int
    unusable: int = Field(description="images that could not be predicted")
    flagged: int | None = Field(
        None, description="images unlike the training images; none where nothing flags them"
    )
    predicted: dict[str, int] = Field(description="class -> images")
    drifted: list[str] | None = Field(
        None,
        description="kinds of features in which the images drifted; none where nothing was measured",
    )


class TuningPointer(Pointer):
    """What a study has found so far."""

    kind: ClassVar[str] = "tuning"

    written_at_utc: str
    study: str
    folder: str
    metrics: str
    table: str
    plot: str
    experiment_file: str = Field(description="the best trial's settings, as an experiment")
    pack_pointer: str
    headline: dict[str, float | None]
    note: str = Field(description="of how many trials the best is the best")

    @property
    def place(self) -> str:
        """Name of the pointer's folder: one for each study of a data set."""
        return f"{self.dataset}+{self.study}"


POINTER_TYPES: dict[str, type[Pointer]] = {
    cls.kind: cls
    for cls in (
        FetchPointer,
        MappingPointer,
        PackPointer,
        ValidationPointer,
        CheckpointPointer,
        EvaluationPointer,
        FoldPackPointer,
        FoldCheckpointPointer,
        FoldEnsemblePointer,
        FoldEvaluationPointer,
        CrossValidationPointer,
        EmbeddingsPointer,
        LeaderboardPointer,
        ChampionPointer,
        ExternalEvaluationPointer,
        GeneralisationPointer,
        BatchPredictionPointer,
        TuningPointer,
    )
}
