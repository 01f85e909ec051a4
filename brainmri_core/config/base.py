"""What every config shares: frozen strict models, YAML without surprises, errors that name the key."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from brainmri_core.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
RUN_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_MAX_DEPTH = 20


class StageConfig(BaseModel):
    """Base of all configs: frozen, strict about types, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


# json_schema_extra of settings that a later version added: see without_later.
LATER: dict[str, JsonValue] = {"later": True}


class SeededConfig(StageConfig):
    """Base of configs with a ``seed`` that may be left empty, until `with_seed` fills it from ``env.seed``."""

    @property
    def resolved_seed(self) -> int:
        """The seed of a resolved config.

        Raises
        ------
        ConfigError
            If the seed is empty, because the config was not resolved.
        """
        seed: int | None = getattr(self, "seed")
        if seed is None:
            raise ConfigError(
                "The seed of this configuration is empty; set it, or take the stage's configuration from "
                "PipelineConfig.stage(), which fills it from env.seed."
            )
        return seed


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``no`` is text and ``1e-3`` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    """Parse one YAML document safely.

    Parameters
    ----------
    text : str
        The document.
    source : str
        Its name in error messages.

    Returns
    -------
    value : object
        Plain dicts, lists and scalars.
    lines : dict
        Line number (from 1) of each key path.

    Raises
    ------
    ConfigError
        If the text is not one YAML document, repeats a key, uses aliases (which can blow up a small file), is
        nested more than 20 deep, or carries a tag.
    """
    lines: dict[KeyPath, int] = {}
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ConfigError(f"{source}:{line}: nested more than {_MAX_DEPTH} levels deep.")
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{source}:{line}: YAML aliases (*{event.anchor}) are not accepted; write the value out."
                )
            if (tag := getattr(event, "tag", None)) is not None:
                raise ConfigError(
                    f"{source}:{line}: YAML tags ({tag}) are not accepted; write the plain value."
                )
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), lines, source)), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{where}: not valid YAML: {problem}.") from None


def _construct(
    loader: _Loader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            here = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{source}:{here}: a key must be plain text.")
            if key in result:
                raise ConfigError(
                    f"{source}:{here}: the key '{dotted((*path, key))}' appears twice; keep one of them."
                )
            lines[(*path, key)] = here
            result[key] = _construct(loader, value_node, (*path, key), lines, source)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), lines, source) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise ConfigError(f"{source}:{line}: {_short(repr(node.value))} cannot be read: {error}.") from None


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Read a YAML mapping from a file; an empty file is an empty mapping.

    Raises
    ------
    ConfigError
        If the file is missing, unreadable, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration {path}: {error.strerror}; check the path."
        ) from None
    value, lines = parse_yaml(text, str(path))
    if value is None:
        return {}, lines
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} must hold 'key: value' lines at its top level, not a {type(value).__name__}."
        )
    return value, lines


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:100]}..."


def dotted(path: KeyPath) -> str:
    """Join a key path as it is written in overrides: ``train.optim.lr``."""
    return ".".join(str(part) for part in path)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested blocks by dotted key."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return found


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside an annotation such as ``Model``, ``Model | None``, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := nested_model(arg))), None)
    return None


def field_names(model: type[BaseModel]) -> dict[str, Any]:
    """Map each key of a model, as YAML writes it, to its field."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def without_later(model: type[BaseModel], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's values without those settings marked `LATER` that have their default.

    A result made before such a setting existed was made with its default. Leaving the setting out gives both results the
    same hash.

    Parameters
    ----------
    model : type
        The config's class.
    value : mapping
        Its values as plain JSON, whole or in part.
    """
    kept: dict[str, Any] = {}
    fields = field_names(model)
    for key, item in value.items():
        info = fields[key]
        nested = nested_model(info.annotation)
        if info.json_schema_extra == LATER and item == info.default:
            continue
        kept[key] = without_later(nested, item) if nested is not None and isinstance(item, dict) else item
    return kept


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    annotation: Any = model
    for part in path:
        current = nested_model(annotation)
        if current is not None:
            info = field_names(current).get(str(part))
            annotation = info.annotation if info else None
        else:  # every key of a mapping has the same type of value
            annotation = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return nested_model(annotation)


def validate_config(
    model: type[M], value: Mapping[str, Any], source: str, lines: Mapping[KeyPath, int] | None = None
) -> M:
    """Validate a mapping as a config.

    Raises
    ------
    ConfigError
        For the first problem, unknown keys first. The message names the source (with the line, where known), the key path,
        what was found and, for an unknown key, the nearest valid one.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
        path = tuple(
            part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))
        )
        line = next((lines[path[:n]] for n in range(len(path), 0, -1) if lines and path[:n] in lines), None)
        where = f"{source}:{line}" if line else source
        if problem["type"] == "extra_forbidden":
            parent = _model_at(model, path[:-1])
            valid = list(field_names(parent)) if parent else []
            raise ConfigError(f"{where}: unknown key '{dotted(path)}'; {suggestion(path, valid)}") from None
        message = problem["msg"].removeprefix("Value error, ")
        if not path:
            raise ConfigError(f"{where}: {message.rstrip('.')}.") from None
        found = problem["input"]
        shown = f"found {_short(repr(found))}" if not isinstance(found, dict) else "found a mapping"
        raise ConfigError(f"{where}: '{dotted(path)}': {message}; {shown}.") from None


def suggestion(path: KeyPath, valid: list[str]) -> str:
    """Return the hint for an unknown key: the nearest of the valid keys beside it, else all of them."""
    near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.4)
    return f"did you mean '{dotted((*path[:-1], near[0]))}'?" if near else f"valid keys: {', '.join(valid)}."


def _split_override(argument: str) -> tuple[KeyPath, str]:
    key, separator, text = argument.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise ConfigError(f"--override {argument!r}: write it as key=value, for example train.loop.epochs=5.")
    return parts, text.strip()


def apply_overrides(model: type[BaseModel], value: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return `value` with each ``key=value`` applied; the type of the field decides how its text is read.

    Raises
    ------
    ConfigError
        If an override is not ``key=value``, or its key does not exist (the nearest one is suggested) or names a block.
    """
    result: dict[str, Any] = _copy(value)
    for argument in overrides:
        path, text = _split_override(argument)
        current, target = model, result
        for depth, part in enumerate(map(str, path)):
            fields = field_names(current)
            if part not in fields:
                unknown = path[: depth + 1]
                raise ConfigError(
                    f"--override: unknown key '{dotted(unknown)}'; {suggestion(unknown, list(fields))}"
                )
            nested = nested_model(fields[part].annotation)
            if depth < len(path) - 1:
                if nested is None:
                    raise ConfigError(
                        f"--override: '{dotted(path[: depth + 1])}' is a value and has no keys below it."
                    )
                target[part] = dict(target.get(part) or {})
                current, target = nested, target[part]
            elif nested is not None and text not in ("null", "~"):
                raise ConfigError(
                    f"--override: '{dotted(path)}' is a block; name one of its keys: {', '.join(field_names(nested))}."
                )
            else:
                target[part] = _parse_for(fields[part].annotation, text)
    return result


def _parse_for(annotation: Any, text: str) -> Any:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if text in ("null", "~", "") and type(None) in options:
        return None
    if str in options and not {int, float, bool} & set(options):
        return text
    return parse_yaml(text, "--override")[0]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
