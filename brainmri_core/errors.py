"""The errors users see: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

from brainmri_core.escaping import printable


class BrainMRIError(Exception):
    """Base of every error that this package raises on purpose.

    Its text is one line: control characters in the names that it quotes are escaped.

    Attributes
    ----------
    exit_code : int
        Exit code of the command line for this kind of error.
    """

    exit_code = 1

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class ConfigError(BrainMRIError):
    """The configuration, catalogue or command line is wrong; nothing was started."""

    exit_code = 2


class InputTypeError(ConfigError, TypeError):
    """A function was given a value of a type that it does not accept."""


class SourceError(BrainMRIError):
    """A data set could not be fetched or its archive cannot be used."""

    exit_code = 3


class DataError(BrainMRIError):
    """The images, labels or splits of a data set cannot be used as asked."""

    exit_code = 4


class MissingUpstreamError(BrainMRIError):
    """A stage was asked for before the stage it depends on has left a result."""

    exit_code = 5


class IntegrityError(BrainMRIError):
    """A stored artefact is damaged, was changed, or does not belong to its record."""

    exit_code = 6


class ModelError(BrainMRIError):
    """A model or its weights cannot be used, or a training cannot continue."""

    exit_code = 7


class StorageError(BrainMRIError):
    """A file could not be written or read: no space, no permission, or a device error."""

    exit_code = 8


class BusyError(StorageError):
    """A file or folder is locked by another run."""
