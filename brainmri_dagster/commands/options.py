"""The options that several commands have, each declared once, and what ``--config`` leads to."""

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

# By the field of `launch.Request` that an option fills.
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
        typer.Option("--archive", help="Local zip or folder to use as if Kaggle had delivered it."),
    ],
    "trained_on": Annotated[
        str | None,
        typer.Option(
            "--trained-on",
            metavar="OWNER/SLUG",
            help="Measure this data set's model on all of --dataset but the images it may have seen.",
        ),
    ],
    "checkpoint": Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="With --trained-on: the checkpoint; default: its champion, else its newest.",
        ),
    ],
    "node": Annotated[
        int | None,
        typer.Option(
            "--node",
            metavar="N",
            help="Help the first node of train.distributed.nodes train, as node N, and write nothing.",
        ),
    ],
    "run_id": Annotated[
        str | None, typer.Option("--run-id", help="Run id; default: made from time and Dagster's id.")
    ],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Write plan.json, print it and exit.")],
    "stale_only": Annotated[
        bool,
        typer.Option("--stale-only", help="Run only what is out of date; nothing changed, nothing done."),
    ],
    "debug": Debug,
}


def takes(*names: str) -> Callable[[F], F]:
    """Give a command options in the order of their names: its own parameters, or those of `RUN_OPTIONS`.

    The command gets the latter as further keyword arguments.
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
    """Return the project and the settings that ``--config`` leads to."""
    from brainmri_core.config import load_config
    from brainmri_core.project.layout import Layout

    settings = load_config(config)
    return Layout.at(settings.paths.root), settings
