"""The search space of a study: a YAML file of config keys, with bounds inside those of the settings themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from brainmri_core.config.base import (
    KeyPath,
    StageConfig,
    dotted,
    field_names,
    nested_model,
    read_yaml,
    suggestion,
    validate_config,
)
from brainmri_core.config.files import files_by_name
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ConfigError

Value = bool | int | float | str | None
_NOT_SEARCHED = {
    "train.io": "says where results go",
    "train.tracking": "says where results go",
    "train.distributed": "says how a training is computed and not what it learns",
    "train.loop.resume": "says how a training is computed and not what it learns",
    "train.loop.resume_from": "says how a training is computed and not what it learns",
    "train.data.num_workers": "says how a training is computed and not what it learns",
    "train.data.train_in": "chooses the data, which is the same in all trials",
    "train.data.mapping_pointer": "chooses the data, which is the same in all trials",
    "train.data.seed": "is chance, and the best of many seeds is luck that no other data repeats",
    "train.data.val_seed": "is chance, and the best of many seeds is luck that no other data repeats",
}


class Dimension(StageConfig):
    """The range of one setting in a study's file: two bounds or a list of values; defaults come from the setting."""

    low: int | float | None = Field(None, description="Least value.")
    high: int | float | None = Field(None, description="Greatest value.")
    step: int | float | None = Field(None, gt=0, description="Distance of the values; empty: any.")
    log: bool = Field(False, description="Draw evenly on a logarithmic scale.")
    choices: list[Value] | None = Field(None, description="The values, instead of low and high.")


class StudyFile(StageConfig):
    """A file of configs/studies."""

    space: dict[str, Dimension] = Field(description="Key of a setting -> what it may be.")


class Setting(BaseModel):
    """One setting of a search space with complete bounds.

    Attributes
    ----------
    kind : str
        ``choice`` takes one of `choices`, the others a number from `low` to `high`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["int", "float", "choice"]
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    choices: list[Value] = []


Space = dict[str, Setting]


def find_study(name: str) -> Path:
    """Return a study's file.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    files = files_by_name("studies")
    if name not in files:
        raise ConfigError(
            f"There is no study {name!r}; known: {', '.join(files) or 'none'}. Write configs/studies/{name}.yaml."
        )
    return files[name]


def read_space(file: Path) -> Space:
    """Read a study's search space, sorted by key.

    Raises
    ------
    ConfigError
        For an unknown key, a setting that cannot be searched, a value outside the setting's own bounds, a missing bound, or
        a single value. The message names the file and line.
    """
    value, lines = read_yaml(file)
    found = validate_config(StudyFile, value, str(file), lines)
    space: Space = {}
    for key, dimension in sorted(found.space.items()):
        where = f"{file}:{lines.get(('space', key), 1)}: '{key}'"
        space[key] = _setting(dimension, _field(key, where), where)
    if not space:
        raise ConfigError(
            f"{file}: the space is empty, so there is nothing to search; name a key such as train.optim.lr."
        )
    return space


def with_values(config: TrainConfig, values: Mapping[str, Value], source: str) -> TrainConfig:
    """Return a training config with the values of a trial, given by dotted key.

    Raises
    ------
    ConfigError
        If the values do not fit together.
    """
    changed = config.model_dump(mode="json", by_alias=True)
    for key, value in values.items():
        *blocks, last = key.split(".")[1:]
        target: dict[str, Any] = changed
        for block in blocks:
            target = target[block]
        target[last] = value
    return validate_config(TrainConfig, changed, source)


def _field(key: str, where: str) -> FieldInfo:
    """Return the field of a dotted key."""
    parts = key.split(".")
    if parts[0] != "train" or len(parts) == 1:
        raise ConfigError(
            f"{where} is not a setting of the training; a study searches keys of train, such as train.optim.lr."
        )
    for stem, reason in _NOT_SEARCHED.items():
        if key == stem or key.startswith(f"{stem}."):
            raise ConfigError(f"{where} {reason}; remove it from the space.")
    model: type[BaseModel] | None = TrainConfig
    info: FieldInfo | None = None
    for depth, part in enumerate(parts[1:], 1):
        fields = field_names(model) if model is not None else {}
        if part not in fields:
            raise ConfigError(f"{where} is not a setting; {_hint(tuple(parts[:depth]), part, list(fields))}")
        info = fields[part]
        model = nested_model(fields[part].annotation)
    if info is None or model is not None:
        names = ", ".join(field_names(model)) if model is not None else ""
        raise ConfigError(f"{where} is a block; name one of its keys: {names}.")
    return info


def _hint(above: KeyPath, part: str, valid: list[str]) -> str:
    if not valid:
        return f"'{dotted(above)}' is a value and has no keys below it."
    return suggestion((*above, part), valid)


def _setting(dimension: Dimension, info: FieldInfo, where: str) -> Setting:
    """Complete the range of a setting with the setting's own type and bounds."""
    types = [item for item in _options(info.annotation) if item is not NoneType]
    if dimension.choices is None and types[0] in (int, float):
        return _numbers(dimension, info, "int" if types[0] is int else "float", where)
    if dimension.low is not None or dimension.high is not None or dimension.step is not None or dimension.log:
        raise ConfigError(
            f"{where} takes one of several values, so low, high, step and log do not apply; use choices."
        )
    choices = dimension.choices
    if choices is None and types == [bool]:
        choices = [False, True]
    if choices is None and get_origin(types[0]) is Literal:
        choices = list(get_args(types[0]))
    if choices is None:
        raise ConfigError(f"{where} has no values of its own to choose from; list some in choices.")
    for value in choices:
        _check(value, info, where)
    _refuse_single(len({repr(value) for value in choices}) < 2, choices[:1], where)
    return Setting(kind="choice", choices=choices)


def _numbers(dimension: Dimension, info: FieldInfo, kind: Literal["int", "float"], where: str) -> Setting:
    low = dimension.low if dimension.low is not None else _own_bound(info, kind, "low", where)
    high = dimension.high if dimension.high is not None else _own_bound(info, kind, "high", where)
    for value in (low, high):
        _check(value, info, where)
    if low > high:
        raise ConfigError(f"{where} runs from {low} to {high}; exchange low and high.")
    _refuse_single(low == high or (dimension.step or 0) > high - low, [low], where)
    if dimension.log and low <= 0:
        raise ConfigError(f"{where} is drawn on a logarithmic scale from {low}; give a low above 0.")
    if dimension.log and dimension.step is not None:
        raise ConfigError(f"{where} has a step and a logarithmic scale; leave one of them out.")
    if kind == "int" and not isinstance(dimension.step, int | None):
        raise ConfigError(f"{where} is an integer but its step is {dimension.step}; give an integer step.")
    return Setting(kind=kind, low=low, high=high, step=dimension.step, log=dimension.log)


def _own_bound(info: FieldInfo, kind: str, side: Literal["low", "high"], where: str) -> int | float:
    """Return a setting's own least or greatest value; an open interval of real numbers has none."""
    closed, opened, shift = ("ge", "gt", 1) if side == "low" else ("le", "lt", -1)
    for item in info.metadata:
        if (value := getattr(item, closed, None)) is not None:
            return int(value) if kind == "int" else float(value)
        if (value := getattr(item, opened, None)) is not None and kind == "int":
            return int(value) + shift
    limit = next(
        (value for item in info.metadata if (value := getattr(item, opened, None)) is not None), None
    )
    word = "above" if side == "low" else "below"
    told = f"must stay {word} {limit}" if limit is not None else "has no such bound of its own"
    raise ConfigError(f"{where} {told}; give its {side}.")


def _check(value: Value, info: FieldInfo, where: str) -> None:
    """Refuse a value that the setting itself refuses, with the setting's own reason."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} holds {value}, which is not a finite number.")
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise ConfigError(f"{where} holds {value!r}, which the setting itself refuses: {reason}.") from None


def _refuse_single(single: bool, values: list[Any], where: str) -> None:
    if single:
        told = f" but {values[0]!r}" if values else ""
        raise ConfigError(f"{where} has no other value{told}; widen its range, or remove it from the space.")


def _options(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
