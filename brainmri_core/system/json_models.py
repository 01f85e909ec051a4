"""JSON files read as pydantic models."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from brainmri_core.errors import IntegrityError
from brainmri_core.system.json_files import read_json

M = TypeVar("M", bound=BaseModel)


def read_model(path: Path, model: type[M], problem: str, remedy: str) -> M:
    """Read a JSON file as a model.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    model : type
        A pydantic model.
    problem, remedy : str
        Parts of the error where the file holds something else: ``<path> <problem>: '<field>': ...; <remedy>.``

    Raises
    ------
    IntegrityError
        If the file is not JSON, or its content does not fit the model.
    StorageError
        If it cannot be read.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(f"{path} {problem}: '{where}': {first['msg']}; {remedy}.") from None
