"""The function that a Dask worker runs for one piece of work. It returns a short answer; the result is a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from brainmri_core.cluster.shard_files import Arrays, write_arrays
from brainmri_core.cluster.software import software
from brainmri_core.errors import BrainMRIError, ConfigError, StorageError


def work_on(
    work: Callable[..., Arrays],
    arguments: tuple[Any, ...],
    folder: str,
    number: int,
    wanted: Mapping[str, str],
) -> dict[str, Any]:
    """Do a piece of work and leave its result in the shared folder.

    Parameters
    ----------
    work : callable
        A function of a module of this package.
    arguments : tuple
        The arguments of `work`.
    folder : str
        The shared folder.
    number : int
        Number of the piece, for the name of its result.
    wanted : mapping
        The versions (`software.software`) of the process that sends the work.

    Returns
    -------
    dict
        ``file``, the name of the result; or ``error`` and ``text``, an error that
        would occur again on any worker.

    Raises
    ------
    StorageError
        If the work failed, but may succeed on another worker or at a second try.
    """
    from distributed import get_worker

    me = str(get_worker().name)
    other = [
        f"{name} {mine} instead of {wanted[name]}"
        for name, mine in software().items()
        if name in wanted and mine != wanted[name]
    ]
    if other:
        sentence = f"The Dask worker {me} has {', '.join(other)}; install the same there, or stop it."
        return {"error": ConfigError.__name__, "text": sentence}
    if not Path(folder).is_dir():
        raise StorageError(
            f"The Dask worker {me} does not see the folder {folder}; mount the project's folder there at the same path (the copies "
            "of a project in a bucket are seen by workers of the run's own machine only), or stop it."
        )
    try:
        return {"file": write_arrays(Path(folder), number, work(*arguments))}
    except StorageError:
        raise
    except BrainMRIError as error:
        return {"error": type(error).__name__, "text": str(error)}
