"""Options that several commands share, each declared once, and the project that ``--config`` names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

if TYPE_CHECKING:
    from brainmri_core.config import PipelineConfig
    from brainmri_core.project.layout import Layout

F = TypeVar("F", bound=Callable[..., None])

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration; default: configs/pipeline.yaml.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Experiment = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        metavar="NAME",
        help="Use an experiment's settings: its name, or the path of its file.",
    ),
]

# By field of `launch.Request`.
RUN_OPTIONS: dict[str, Any] = {
    "config": Config,
    "overrides": Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            "-o",
            metavar="KEY=VALUE",
            help="Change one value, e.g. train.optim.lr=3e-4; repeatable.",
        ),
    ],
    "dataset": Annotated[
        str | None, typer.Option("--dataset", metavar="OWNER/SLUG", help="Data set of the catalogue.")
    ],
    "archive": Annotated[
        Path | None,
        typer.Option("--archive", help="Local zip or folder to use as if it had been downloaded."),
    ],
    "trained_on": Annotated[
        str | None,
        typer.Option(
            "--trained-on",
            metavar="OWNER/SLUG",
            help="Evaluate this data set's model on all images of --dataset that it cannot have seen.",
        ),
    ],
    "checkpoint": Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="With --trained-on: the checkpoint; default: the champion, else the newest checkpoint.",
        ),
    ],
    "node": Annotated[
        int | None,
        typer.Option(
            "--node",
            metavar="N",
            help="Train as node N of train.distributed.nodes for the first node, and write nothing.",
        ),
    ],
    "run_id": Annotated[
        str | None, typer.Option("--run-id", help="Run id; default: made from the time and Dagster's run id.")
    ],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Write plan.json, print it and exit.")],
    "stale_only": Annotated[
        bool,
        typer.Option("--stale-only", help="Run only what is out of date, which may be nothing."),
    ],
    "debug": Debug,
}


def takes(*names: str) -> Callable[[F], F]:
    """Give a command options in this order: its own parameters by name, else options of `RUN_OPTIONS`.

    The command gets the latter as keyword arguments.
    """

    def declare(command: F) -> F:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = {name: item for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD}
        arguments = [item for name, item in own.items() if name not in names]
        options = [own.get(name) or _option(name) for name in names]
        found = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in (*arguments, *options)]
        command.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
        return command

    return declare


def _option(name: str) -> inspect.Parameter:
    kind = RUN_OPTIONS[name]
    default = False if get_args(kind)[0] is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def opened(config: Path | None) -> tuple[Layout, PipelineConfig]:
    """Return the project and the settings of the file that ``--config`` names.

    Parameters
    ----------
    config : pathlib.Path or None
        The file.

    Raises
    ------
    ConfigError
        If the configuration is wrong.
    """
    from brainmri_core.config import load_config
    from brainmri_core.project.layout import Layout

    settings = load_config(config)
    return Layout.of(settings.paths), settings
