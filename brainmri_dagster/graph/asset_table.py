"""The assets as a table: the stage each runs, the pointer it leaves, and its inputs. Imports no Dagster."""

from __future__ import annotations

from dataclasses import dataclass

from brainmri_core.config import Stage
from brainmri_core.project.pointers import (
    BatchPredictionPointer,
    ChampionPointer,
    CheckpointPointer,
    CrossValidationPointer,
    EmbeddingsPointer,
    EvaluationPointer,
    ExternalEvaluationPointer,
    FetchPointer,
    FoldCheckpointPointer,
    FoldEnsemblePointer,
    FoldEvaluationPointer,
    GeneralisationPointer,
    LeaderboardPointer,
    MappingPointer,
    PackPointer,
    Pointer,
    TuningPointer,
    ValidationPointer,
    pair_place,
)

RUN_ID_TAG = "brainmri/run_id"
COMMAND_TAG = "brainmri/command"
CONSOLE_TAG = "brainmri/console"
EXPERIMENT_TAG = "brainmri/experiment"
PROCESS_TAG = "brainmri/process"
CODE_TAG = "brainmri/code"


@dataclass(frozen=True)
class StageAsset:
    """One asset of the graph.

    Attributes
    ----------
    stage : str or None
        The stage it runs, whose config block it takes; None if it has no settings.
    link : str or None
        Field of the pointer that refers to the pointer of the first input.
    code_version : str
        Increased when changed code of the stage gives another result from the same inputs.
    what : str
        What the asset is called in error messages.
    label : str
        Name of its entry in the manifest, if that is not its stage.
    also : tuple of str
        Other stages whose config blocks it also takes, each under the stage's name.
    command : str
        The command that makes it, if that is not named after its stage.
    """

    name: str
    stage: Stage | None
    pointer: type[Pointer]
    inputs: tuple[str, ...]
    link: str | None
    what: str
    code_version: str = "1"
    label: str = ""
    also: tuple[Stage, ...] = ()
    command: str = ""

    @property
    def entry(self) -> str:
        """Name of the asset's entry in plan, manifest and logs."""
        return self.label or self.stage or self.name


ASSETS: dict[str, StageAsset] = {
    item.name: item
    for item in (
        StageAsset("raw_dataset", "fetch", FetchPointer, (), None, "fetched data set"),
        StageAsset(
            "dataset_split",
            "split",
            MappingPointer,
            ("raw_dataset",),
            "fetch_pointer",
            "split",
            code_version="2",
        ),
        StageAsset(
            "resized_images",
            "resize",
            PackPointer,
            ("dataset_split",),
            "mapping_pointer",
            "pack of resized images",
        ),
        StageAsset(
            "validation_report",
            "validate",
            ValidationPointer,
            ("resized_images",),
            "pack_pointer",
            "validation report",
        ),
        StageAsset(
            "model_checkpoint", "train", CheckpointPointer, ("resized_images",), "pack_pointer", "checkpoint"
        ),
        StageAsset(
            "evaluation",
            "evaluate",
            EvaluationPointer,
            ("model_checkpoint", "resized_images"),
            "checkpoint_pointer",
            "evaluation",
        ),
        StageAsset(
            "champion",
            "evaluate",
            ChampionPointer,
            ("model_checkpoint", "evaluation"),
            None,
            "champion",
            label="champion",
        ),
        StageAsset(
            "fold_checkpoint",
            "train",
            FoldCheckpointPointer,
            ("resized_images",),
            None,
            "checkpoint of a fold",
            command="backfill --select fold_checkpoint",
        ),
        StageAsset(
            "fold_evaluation",
            "evaluate",
            FoldEvaluationPointer,
            ("fold_checkpoint",),
            None,
            "evaluation of a fold",
        ),
        StageAsset(
            "cross_validation_report",
            "evaluate",
            CrossValidationPointer,
            ("fold_checkpoint", "fold_evaluation", "resized_images"),
            None,
            "cross-validation report",
            label="cross_validation",
        ),
        StageAsset(
            "fold_ensemble",
            "train",
            FoldEnsemblePointer,
            ("fold_checkpoint", "fold_evaluation", "resized_images"),
            None,
            "ensemble of folds",
            label="fold_ensemble",
            command="ensemble",
        ),
        StageAsset(
            "ensemble_evaluation",
            "evaluate",
            EvaluationPointer,
            ("fold_ensemble", "resized_images"),
            "checkpoint_pointer",
            "evaluation of the ensemble of folds",
            label="ensemble_evaluation",
            command="ensemble",
        ),
        StageAsset(
            "embeddings", "embeddings", EmbeddingsPointer, ("resized_images",), "pack_pointer", "embeddings"
        ),
        StageAsset("leaderboard", None, LeaderboardPointer, ("evaluation",), None, "leaderboard"),
        StageAsset(
            "batch_predictions",
            "batch_predict",
            BatchPredictionPointer,
            ("raw_dataset",),
            "fetch_pointer",
            "batch of predictions",
        ),
        StageAsset(
            "external_evaluation",
            "external",
            ExternalEvaluationPointer,
            ("champion", "model_checkpoint", "evaluation", "resized_images"),
            None,
            "external evaluation",
            label="external_evaluation",
        ),
        StageAsset(
            "tuning_study",
            "tune",
            TuningPointer,
            ("resized_images",),
            "pack_pointer",
            "study",
            also=("train",),
        ),
        StageAsset("generalisation", None, GeneralisationPointer, (), None, "matrix of all data sets"),
    )
}
PIPELINE = (
    "raw_dataset",
    "dataset_split",
    "resized_images",
    "validation_report",
    "model_checkpoint",
    "evaluation",
)
WITHOUT_LABELS = ("raw_dataset", "batch_predictions")
"""The assets that a data set without labels can have."""
FOLD_ASSETS = ("fold_checkpoint", "fold_evaluation")
WHOLE_ASSETS = ("generalisation",)
"""Assets of all data sets together, without partitions; their pointers and logs name `catalogue.EVERY` as the data set."""
ENSEMBLE_ASSETS = ("fold_ensemble", "ensemble_evaluation")
APART = (
    *FOLD_ASSETS,
    "cross_validation_report",
    *ENSEMBLE_ASSETS,
    "tuning_study",
    "external_evaluation",
    *WHOLE_ASSETS,
)
"""Assets in `code_location` but not in `definitions`: a request for everything of one data set does not mean them."""
MODEL_ASSETS = ("champion", "model_checkpoint", "evaluation")
"""Inputs of an external evaluation that belong to the data set trained on; the others belong to the one evaluated on."""
# Settings that do not change the result, such as paths and worker counts: changing them makes nothing out of date.
INCIDENTAL = frozenset(
    "fetch.archive fetch.cache_dir fetch.write_pointer fetch.offline fetch.modified_before fetch.retry fetch.limits split.dest split.clear_dest "
    "resize.in_dir resize.out_dir resize.export_tree resize.shard_mib validate.in_dir train.data.train_in train.data.num_workers train.io train.tracking "
    "train.distributed.nodes train.distributed.rendezvous train.distributed.timeout_s "
    "evaluate.data.eval_in evaluate.data.num_workers evaluate.io.eval_out evaluate.model.weights_path evaluate.choose_by evaluate.challenger "
    "batch_predict.out_dir external.out embeddings.batch_size tune.per_run".split()
)
ASSET_OF_STAGE: dict[Stage, StageAsset] = {
    item.stage: item
    for name in (*PIPELINE, "batch_predictions", "embeddings", "tuning_study")
    if (item := ASSETS[name]).stage is not None
}


def dataset_of(partition: str) -> str:
    """Return the data set of a partition key; a fold has the key ``owner/slug|fold``, a pair the one of `pair_key`."""
    return partition.partition("|")[0]


def is_fold(partition: str) -> bool:
    """Say whether a partition key is that of a fold."""
    return "|" in partition and trained_on(partition) is None


def pair_key(trained: str, evaluated: str) -> str:
    """Return the partition key of a pair; Dagster sorts dimensions by name, so the data set evaluated on comes first."""
    return f"{evaluated}|{trained}"


def trained_on(partition: str) -> str | None:
    """Return the data set trained on if the partition key is that of a pair, else None."""
    other = partition.partition("|")[2]
    return other if "/" in other else None


def partition_read(upstream: str, partition: str) -> str:
    """Return the partition of an upstream asset that an asset with this partition key reads."""
    trained = trained_on(partition)
    if trained is not None and upstream in MODEL_ASSETS:
        return trained
    return partition if upstream in FOLD_ASSETS else dataset_of(partition)


def pointer_place(partition: str) -> str:
    """Return the folder of a partition's pointers, below the folder of their kind."""
    trained = trained_on(partition)
    return partition if trained is None else pair_place(trained, dataset_of(partition))
