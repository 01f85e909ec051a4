"""Every typed config: one class per stage and `PipelineConfig`, read from YAML with key=value overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from brainmri_core.config.base import (
    RUN_ID_PATTERN,
    SeededConfig,
    StageConfig,
    apply_overrides,
    read_yaml,
    validate_config,
)
from brainmri_core.config.batch import BatchPredictConfig
from brainmri_core.config.cluster import ClusterConfig
from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
from brainmri_core.config.embeddings import EmbeddingsConfig
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.config.external import ExternalConfig
from brainmri_core.config.files import default_config_path, named_config_path
from brainmri_core.config.training import TrainConfig
from brainmri_core.config.tuning import TuneConfig
from brainmri_core.errors import ConfigError

Stage = Literal[
    "fetch",
    "split",
    "resize",
    "validate",
    "train",
    "evaluate",
    "external",
    "batch_predict",
    "embeddings",
    "tune",
]
STAGES: tuple[Stage, ...] = ("fetch", "split", "resize", "validate", "train", "evaluate")
"""The stages of the pipeline of one data set, in order."""
BLOCKS: tuple[Stage, ...] = (*STAGES, "external", "batch_predict", "embeddings", "tune")
"""Everything that has a block of its own in the configuration."""


class EnvConfig(StageConfig):
    """Seeds and hardware."""

    seed: int = Field(42, ge=0, le=2**32 - 1, description="Seed of everything random.")
    prefer_cuda: bool = Field(True, description="Use a CUDA device when there is one.")
    cudnn_deterministic: bool = Field(True, description="Choose deterministic cuDNN kernels.")
    cudnn_benchmark: bool = Field(False, description="Let cuDNN time its kernels and pick the fastest.")


class LogConfig(StageConfig):
    """Logging."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severity logged.")
    file: str | None = Field(None, description="Also append all log lines to this file.")
    json_lines: bool = Field(False, alias="json", description="JSON lines on the console instead of text.")


class PathsConfig(StageConfig):
    """Where the project lies."""

    root: str | None = Field(
        None,
        description="Project root: a folder, or s3://, gs:// or az:// with bucket and prefix; empty: BRAINMRI_HOME, else the current folder.",
    )
    cache: str | None = Field(
        None,
        description="Folder for this machine's copies of a project in an object store; empty: ~/.cache/brainmri.",
    )
    cache_gib: float = Field(
        100.0, gt=0, description="Most that those copies may take, in GiB; what is in use may take more."
    )


class PipelineConfig(StageConfig):
    """Everything one run needs."""

    run_id: str | None = Field(None, pattern=RUN_ID_PATTERN, description="Run id; empty: made automatically.")
    env: EnvConfig = EnvConfig()
    log: LogConfig = LogConfig()
    paths: PathsConfig = PathsConfig()
    cluster: ClusterConfig = ClusterConfig()
    fetch: FetchConfig = FetchConfig()
    split: SplitConfig = SplitConfig()
    resize: ResizeConfig = ResizeConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    external: ExternalConfig = ExternalConfig()
    batch_predict: BatchPredictConfig = BatchPredictConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        datasets = {value for value in (self.fetch.dataset, self.split.dataset) if value}
        if len(datasets) > 1:
            raise ValueError(
                f"fetch.dataset and split.dataset name different data sets ({' and '.join(sorted(datasets))}); use one"
            )
        name = self.evaluate.model.name
        if name is not None and name != self.train.model.name:
            raise ValueError(
                f"evaluate.model.name is {name!r} but train.model.name is {self.train.model.name!r}; set both to the same architecture"
            )
        return self

    @property
    def dataset(self) -> str | None:
        """The data set the configuration names, if any."""
        return self.fetch.dataset or self.split.dataset

    def stage(self, name: Stage) -> StageConfig:
        """Return a stage's config with the seeds it leaves open filled from ``env.seed``."""
        config: StageConfig = getattr(self, _field(name))
        return with_seed(config, self.env.seed)

    def with_seeds(self) -> PipelineConfig:
        """Return the configuration with the seeds that its stages leave open filled from ``env.seed``."""
        return self.model_copy(update={_field(name): self.stage(name) for name in BLOCKS})

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as plain JSON values, keyed as YAML writes it, seeds filled in."""
        return self.with_seeds().model_dump(mode="json", by_alias=True)


def _field(stage: Stage) -> str:
    """Return the field of `PipelineConfig` that holds a stage's config."""
    return "validate_" if stage == "validate" else stage


def with_seed(config: StageConfig, seed: int) -> StageConfig:
    """Fill an empty ``seed`` (or ``data.seed``) of a stage's config."""
    if isinstance(config, SeededConfig) and getattr(config, "seed") is None:
        return config.model_copy(update={"seed": seed})
    data = getattr(config, "data", None)
    if isinstance(data, StageConfig):
        return config.model_copy(update={"data": with_seed(data, seed)})
    return config


def load_config(path: Path | None = None, overrides: list[str] | None = None) -> PipelineConfig:
    """Load the pipeline configuration.

    Parameters
    ----------
    path : pathlib.Path or None
        YAML file; None takes `default_config_path`. `named_config_path` says how a relative path is resolved. A file may hold
        the block of a single stage: everything left out has its default.
    overrides : list of str or None
        ``key=value`` texts, applied last.

    Raises
    ------
    ConfigError
        If a key or value is wrong. The message names the file, the line, the key path, what was found and the nearest
        valid key.
    """
    source = default_config_path() if path is None else named_config_path(path)
    value, lines = read_yaml(source)
    for key, item in value.items():
        if item is None and key in PipelineConfig.model_fields and key != "run_id":
            raise ConfigError(
                f"{source}:{lines.get((key,), 1)}: the block '{key}' is empty; remove it or give it a key."
            )
    merged = apply_overrides(PipelineConfig, value, overrides or [])
    return validate_config(PipelineConfig, merged, str(source), lines)
