"""The command line: a thin layer that runs the same assets in this process. Heavy imports wait until work starts."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brainmri_core.errors import BrainMRIError, IntegrityError
from brainmri_dagster.commands import model as cli_model
from brainmri_dagster.commands import overlap as cli_overlap
from brainmri_dagster.commands import project

if TYPE_CHECKING:
    from brainmri_core.config import PipelineConfig
    from brainmri_core.project.layout import Layout

INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(
    name="brainmri",
    help="Brain-tumour MRI classification: fetch, split, resize, validate, train, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML configuration; default: configs/pipeline.yaml.")
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="KEY=VALUE",
        help="Change one value, e.g. train.optim.lr=3e-4; repeatable.",
    ),
]
Dataset = Annotated[
    str | None, typer.Option("--dataset", metavar="OWNER/SLUG", help="Data set of the catalogue.")
]
Archive = Annotated[
    Path | None, typer.Option("--archive", help="Local zip or folder to use as if Kaggle had delivered it.")
]
RunId = Annotated[
    str | None, typer.Option("--run-id", help="Run id; default: made from time and Dagster's id.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _run(
    stages: list[str],
    config: Path | None,
    override: list[str] | None,
    dataset: str | None,
    archive: Path | None,
    run_id: str | None,
    debug: bool,
    *,
    dry_run: bool = False,
    stale_only: bool = False,
    experiment: str | None = None,
    trained_on: str | None = None,
    checkpoint: Path | None = None,
) -> None:
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # Dagster does so in its own processes
    try:
        from brainmri_dagster.commands.launch import Request, launch

        code = launch(
            Request(
                stages=tuple(stages),
                config=config,
                overrides=tuple(override or ()),
                dataset=dataset,
                archive=archive,
                run_id=run_id,
                dry_run=dry_run,
                stale_only=stale_only,
                experiment=experiment,
                trained_on=trained_on,
                checkpoint=checkpoint,
                debug=debug,
            )
        )
    except BrainMRIError as error:
        if debug:
            raise
        print(f"brainmri: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("brainmri: interrupted before the first stage.", file=sys.stderr)
        code = INTERRUPTED
    raise typer.Exit(code)


@app.command()
def fetch(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    archive: Archive = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Bring a data set to the local disk."""
    _run(["fetch"], config, override, dataset, archive, run_id, debug)


@app.command()
def split(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Decide which image serves for training and which for testing."""
    _run(["split"], config, override, dataset, None, run_id, debug)


@app.command()
def resize(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Bring every image to one size and pack the pixels."""
    _run(["resize"], config, override, dataset, None, run_id, debug)


@app.command()
def validate(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Look for what is wrong with the data before a model learns it."""
    _run(["validate"], config, override, dataset, None, run_id, debug)


@app.command()
def train(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Fit a classifier and keep its best checkpoint."""
    _run(["train"], config, override, dataset, None, run_id, debug)


@app.command()
def evaluate(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            "--trained-on",
            metavar="OWNER/SLUG",
            help="Measure this data set's model on all of --dataset but the images it may have seen.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="With --trained-on: the checkpoint; default: its champion, else its newest.",
        ),
    ] = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Measure a checkpoint on the test split, or on another data set than its own."""
    _run(
        ["evaluate"],
        config,
        override,
        dataset,
        None,
        run_id,
        debug,
        trained_on=trained_on,
        checkpoint=checkpoint,
    )


@app.command()
def pipeline(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    archive: Archive = None,
    run_id: RunId = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write plan.json, print it and exit.")] = False,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="STAGE", help="Leave out a stage; repeatable.")
    ] = None,
    resume_from: Annotated[
        str | None, typer.Option("--resume-from", metavar="STAGE", help="Start at a stage.")
    ] = None,
    stale_only: Annotated[
        bool,
        typer.Option("--stale-only", help="Run only what is out of date; nothing changed, nothing done."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run all stages, from the archive to the evaluation."""
    try:
        from brainmri_dagster.commands.launch import select_stages

        stages = select_stages(skip or [], resume_from)
    except BrainMRIError as error:
        print(f"brainmri: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    _run(stages, config, override, dataset, archive, run_id, debug, dry_run=dry_run, stale_only=stale_only)


@app.command("batch-predict")
def batch_predict(
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    archive: Archive = None,
    model_of: Annotated[
        str | None,
        typer.Option(
            "--model-of", metavar="OWNER/SLUG", help="Whose champion predicts, else its newest checkpoint."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Checkpoint or evaluation folder to use instead.")
    ] = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Predict all images of a data set, labelled or not, and see whether they are like the model's."""
    chosen = [f"batch_predict.model_of={model_of}"] if model_of is not None else []
    if checkpoint is not None:
        chosen.append(f"batch_predict.checkpoint={checkpoint.expanduser().resolve()}")
    _run(["fetch", "batch_predict"], config, [*(override or []), *chosen], dataset, archive, run_id, debug)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="File of configs/experiments, without .yaml.")],
    config: Config = None,
    override: Override = None,
    dataset: Dataset = None,
    run_id: RunId = None,
    debug: Debug = False,
) -> None:
    """Train and evaluate with an experiment's settings, and rank it on the leaderboard."""
    _run(["train", "evaluate"], config, override, dataset, None, run_id, debug, experiment=name)


@app.command()
def backfill(
    select: Annotated[
        str, typer.Option("--select", metavar="ASSETS", help="Assets, e.g. 'fold_evaluation+'.")
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="OWNER/SLUG", help="Data set; repeatable; default: all."),
    ] = None,
    only_missing: Annotated[
        bool,
        typer.Option("--only-missing", help="Leave out what was made: only missing and failed partitions."),
    ] = False,
) -> None:
    """Fill many partitions through the Dagster daemon, and wait for it."""
    try:
        from brainmri_dagster.commands.backfill import backfill as fill
        from brainmri_dagster.commands.launch import open_instance
        from brainmri_dagster.graph.resources import default_project

        with open_instance(default_project().layout) as instance:
            code = fill(instance, select, dataset or [], only_missing=only_missing)
    except BrainMRIError as error:
        print(f"brainmri: {error}", file=sys.stderr)
        code = error.exit_code
    raise typer.Exit(code)


@app.command()
def verify(config: Config = None) -> None:
    """Check every pointer, file, hash, manifest, pack and checkpoint of the project, and name what is damaged."""
    from tqdm import tqdm

    from brainmri_core.verify import verify as check

    try:
        with tqdm(desc="verifying", unit="record", disable=None) as bar:
            found = check(_project(config)[0], bar.update)
    except BrainMRIError as error:
        print(f"brainmri: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    for problem in found.problems:
        print(f"{problem.path}: {problem.message}")
    looked_at = f"{found.pointers} pointers, {found.runs} runs and {found.files} files"
    if found.problems:
        print(f"brainmri: {len(found.problems)} damaged, of {looked_at}.", file=sys.stderr)
        raise typer.Exit(IntegrityError.exit_code)
    print(f"All is well: {looked_at}.")


@app.command()
def gc(
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--delete", help="Only list what would go, or remove it.")
    ] = True,
) -> None:
    """Remove what no pointer, history copy, manifest or champion refers to, and what dead processes left half-written."""
    try:
        from brainmri_core.gc import collect_garbage
        from brainmri_dagster.commands.launch import open_instance
        from brainmri_dagster.running.dead_runs import close_dead_runs

        layout, settings = _project(config)
        with open_instance(layout) as instance:
            close_dead_runs(instance, layout)
        found = collect_garbage(layout, settings, dry_run=dry_run)
    except BrainMRIError as error:
        print(f"brainmri: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    for path in [*found.results, *found.temporaries]:
        print(layout.relative(path))
    what = f"{len(found.results)} results and {len(found.temporaries)} temporaries, {found.size / 1e6:.1f} MB"
    print(f"{'Would remove' if dry_run else 'Removed'} {what}{'; --delete does it' if dry_run else ''}.")


def _project(config: Path | None) -> tuple[Layout, PipelineConfig]:
    from brainmri_core.config import load_config
    from brainmri_core.project.layout import Layout, resolve_root

    settings = load_config(config)
    return Layout(root=resolve_root(settings.paths.root)), settings


app.command()(project.init)
app.command("add-dataset")(project.add_dataset)
app.command()(project.datasets)
app.command()(cli_model.predict)
app.command()(cli_model.compare)
app.command("app")(cli_model.show)
app.command()(cli_overlap.overlap)
app.command()(cli_model.export)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
