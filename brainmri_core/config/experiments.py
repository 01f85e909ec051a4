"""Experiments: small YAML files that say what differs from the defaults, one job each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from brainmri_core.config import PipelineConfig
from brainmri_core.config.base import apply_overrides, read_yaml, validate_config
from brainmri_core.config.files import files_by_name
from brainmri_core.errors import ConfigError

BLOCKS = ("env", "train", "evaluate")
_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")


def job_name(experiment: str) -> str:
    """Return the name of an experiment's Dagster job."""
    return f"experiment_{experiment.replace('-', '_')}"


def experiment_files(folder: Path | None = None) -> dict[str, Path]:
    """Return the experiments by name: the YAML files of the user's ``configs/experiments/``, and those of the package.

    Raises
    ------
    ConfigError
        If a file name cannot name an experiment, or two names differ only in '-' and '_', which would be the same job.
    """
    return _named(sorted(folder.glob("*.yaml")) if folder else list(files_by_name("experiments").values()))


def _named(files: list[Path]) -> dict[str, Path]:
    """Return experiments by name."""
    jobs: dict[str, Path] = {}
    for file in files:
        if not _NAME.fullmatch(file.stem) or file.stem == "default":
            raise ConfigError(
                f"{file}: name an experiment with lower-case letters, digits, '-' and '_', and not 'default'."
            )
        if (other := jobs.setdefault(job_name(file.stem), file)) != file:
            raise ConfigError(
                f"{file} and {other.name} would share the job {job_name(file.stem)}; rename one."
            )
    return {file.stem: file for file in files}


def apply_experiment(base: PipelineConfig, file: Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Return a configuration with an experiment's differences, then the overrides, applied.

    Raises
    ------
    ConfigError
        If the experiment has an unknown key, or a block other than env, train and evaluate: experiments compare models on
        the same data. The message names the file and line.
    """
    difference, lines = read_yaml(file)
    for key in difference:
        if key in PipelineConfig.model_fields and key not in BLOCKS:
            raise ConfigError(
                f"{file}:{lines.get((key,), 1)}: an experiment changes {', '.join(BLOCKS)}, not '{key}', so that "
                "all experiments of a data set are measured on the same data."
            )
    validate_config(PipelineConfig, difference, str(file), lines)
    merged = merge(base.model_dump(mode="json", by_alias=True), difference)
    return validate_config(
        PipelineConfig, apply_overrides(PipelineConfig, merged, overrides or []), str(file), lines
    )


def merge(base: Any, over: Any) -> Any:
    """Return `base` with the keys of `over` laid over it, block by block."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merge(base.get(key), item) for key, item in over.items()}


def find_experiment(name: str) -> Path:
    """Return an experiment's file, by its name or by its path.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    if name.endswith(".yaml"):
        (found,) = _named([Path(name).expanduser()]).values()
        return found
    files = experiment_files()
    if name not in files:
        raise ConfigError(f"There is no experiment {name!r}; known: {', '.join(files) or 'none'}.")
    return files[name]


def all_experiments(base: PipelineConfig) -> dict[str, PipelineConfig]:
    """Return every experiment's whole configuration, by name."""
    return {name: apply_experiment(base, file) for name, file in experiment_files().items()}
