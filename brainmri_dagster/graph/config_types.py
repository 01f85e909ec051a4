"""Turn the pydantic configs of the core into Dagster config, so that every field is declared once, in `brainmri_core.config`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from brainmri_core.config.base import StageConfig, field_names, nested_model, validate_config

C = TypeVar("C", bound=BaseModel)
_SCALARS: dict[Any, Any] = {bool: dg.Bool, int: dg.Int, float: dg.Float, str: dg.String}
_BOUNDS = {
    "gt": "greater than {}",
    "ge": "at least {}",
    "lt": "less than {}",
    "le": "at most {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


def config_schema(defaults: StageConfig) -> dict[str, dg.Field]:
    """Turn a core config into a Dagster config schema, nested models included.

    Parameters
    ----------
    defaults : StageConfig
        An instance; its class gives names (as YAML writes them), types, descriptions and bounds, its values give the
        defaults the launchpad shows.

    Returns
    -------
    dict
        Key to `dagster.Field`, for ``config_schema=`` of an asset or resource.
    """
    model = type(defaults)
    names = {info.alias or name: name for name, info in model.model_fields.items()}
    return {
        key: _field(f"{model.__name__}_{key}", info, getattr(defaults, names[key]))
        for key, info in field_names(model).items()
    }


def to_core(model: type[C], value: Mapping[str, Any], where: str) -> C:
    """Validate resolved run config as the core config that it came from, with bounds and cross-field rules.

    Raises
    ------
    ConfigError
        With `where`, the path of the key, what was found and the nearest valid key.
    """
    return validate_config(model, value, where)


def _field(name: str, info: FieldInfo, default: Any) -> dg.Field:
    description = _described(info)
    if isinstance(default, StageConfig):
        summary = (type(default).__doc__ or "").strip().splitlines()[0]
        return dg.Field(config_schema(default), description=description or summary)
    plain = TypeAdapter(Any).dump_python(default, mode="json", by_alias=True)
    return dg.Field(
        _config_type(name, info.annotation),
        description=description or None,
        is_required=False,
        default_value=plain,
    )


def _described(info: FieldInfo) -> str:
    limits = [
        text.format(value)
        for item in info.metadata
        for attribute, text in _BOUNDS.items()
        if (value := getattr(item, attribute, None)) is not None
    ]
    if options := _options(info.annotation):
        limits.append(f"one of {', '.join(options)}")
    text = info.description or ""
    return f"{text} ({', '.join(limits)})".strip() if limits else text


def _options(annotation: Any) -> list[str]:
    """Return the texts that a Literal allows, for the description: the launchpad shows only the name of an enumeration."""
    if get_origin(annotation) is not Literal:
        return []
    return [value for value in get_args(annotation) if isinstance(value, str)]


def _config_type(name: str, annotation: Any) -> Any:
    """Return the Dagster config type of an annotation; what Dagster cannot express becomes `Any`, and pydantic checks it later."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if origin is Literal:
        if all(isinstance(value, str) for value in arguments):
            return dg.Enum(name, [dg.EnumValue(value) for value in arguments])
        return _SCALARS.get(type(arguments[0]), dg.Any)
    if origin in (list, tuple):
        return dg.Array(_config_type(name, arguments[0]))
    if origin is dict:
        return {str: _config_type(name, arguments[1])}
    model = nested_model(annotation)
    if origin in (Union, types.UnionType):
        return _union_type(name, arguments)
    return config_schema(model()) if model and issubclass(model, StageConfig) else dg.Any


def _union_type(name: str, arguments: tuple[Any, ...]) -> Any:
    options = [item for item in arguments if item is not type(None)]
    if len(options) < len(arguments):
        inner = _union_type(name, tuple(options)) if len(options) > 1 else _config_type(name, options[0])
        return inner if inner is dg.Any else dg.Noneable(inner)
    lists = [item for item in options if get_origin(item) in (list, tuple)]
    texts = [item for item in options if item is str or get_origin(item) is Literal]
    if len(lists) == 1 and len(texts) == len(options) - 1:
        return dg.ScalarUnion(dg.String, [_config_type(name, get_args(lists[0])[0])])
    return dg.Float if set(options) == {int, float} else dg.Any
