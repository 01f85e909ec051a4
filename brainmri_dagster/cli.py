"""The command line: a thin layer that runs the same assets in this process. Heavy imports happen when work starts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from brainmri_core import __version__
from brainmri_core.errors import IntegrityError
from brainmri_dagster.commands import model, overlap, project
from brainmri_dagster.commands.options import Config, Debug, Experiment, opened, takes
from brainmri_dagster.commands.sentences import sentences
from brainmri_dagster.graph.asset_table import ENSEMBLE_ASSETS

INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(
    name="brainmri",
    help="Brain-tumour MRI classification: fetch, split, resize, validate, train, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"brainmri {__version__}")
        raise typer.Exit


@app.callback()
def _version(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


# By stage: the help text of its command, and the options that it has besides those of all stages.
STAGE_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fetch": ("Download or copy a data set to the local disk, and index its files.", ("archive",)),
    "split": ("Assign each image to training or test, with patients and copies on one side.", ()),
    "resize": ("Resize all images and pack their pixels into one array.", ()),
    "validate": ("Check the data for leaks, copies, shortcuts and damage before a model is trained.", ()),
    "train": ("Train a classifier and keep its best checkpoint.", ("node",)),
    "evaluate": (
        "Evaluate a checkpoint on the test split, or on another data set.",
        ("trained_on", "checkpoint"),
    ),
}


def _run(stages: Iterable[str], *, queue: bool = False, **given: Any) -> None:
    """Run stages and exit with their code; `given` holds the options, named after the fields of `launch.Request`."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # as Dagster does in its own processes
    try:
        with sentences(given["debug"]):
            from brainmri_dagster.commands.launch import Request, launch

            work = launch
            if queue:
                from brainmri_dagster.commands.tuning import tune_queued

                work = tune_queued
            if given.get("node") is not None:
                from brainmri_dagster.commands.node import take_part

                work = take_part
            code = work(Request(stages=tuple(stages), **given))
    except KeyboardInterrupt:
        print("brainmri: interrupted before the first stage.", file=sys.stderr)
        code = INTERRUPTED
    raise typer.Exit(code)


def _declare_stage(stage: str, sentence: str, own: Iterable[str]) -> None:
    @app.command(stage, help=sentence)
    @takes("config", "overrides", "dataset", *own, "run_id", "debug")
    def command(**given: Any) -> None:
        _run([stage], **given)


for _stage, (_sentence, _own) in STAGE_COMMANDS.items():
    _declare_stage(_stage, _sentence, _own)


@app.command()
@takes(
    "config",
    "overrides",
    "dataset",
    "archive",
    "run_id",
    "dry_run",
    "skip",
    "resume_from",
    "stale_only",
    "debug",
)
def pipeline(
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="STAGE", help="Skip a stage; repeatable.")
    ] = None,
    resume_from: Annotated[
        str | None, typer.Option("--resume-from", metavar="STAGE", help="Start at this stage.")
    ] = None,
    **given: Any,
) -> None:
    """Run all stages, from the archive to the evaluation."""
    with sentences(given["debug"]):
        from brainmri_dagster.commands.launch import select_stages

        stages = select_stages(skip or [], resume_from)
    _run(stages, **given)


@app.command("batch-predict")
@takes("config", "overrides", "dataset", "archive", "model_of", "checkpoint", "run_id", "debug")
def batch_predict(
    model_of: Annotated[
        str | None,
        typer.Option(
            "--model-of",
            metavar="OWNER/SLUG",
            help="Data set whose champion, else newest checkpoint, predicts.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Checkpoint or evaluation folder that predicts instead."),
    ] = None,
    **given: Any,
) -> None:
    """Predict all images of a data set, labelled or not, and check them for drift from the model's data."""
    chosen = [f"batch_predict.model_of={model_of}"] if model_of is not None else []
    if checkpoint is not None:
        chosen.append(f"batch_predict.checkpoint={checkpoint.expanduser().resolve()}")
    given["overrides"] = [*(given["overrides"] or []), *chosen]
    _run(["fetch", "batch_predict"], **given)


@app.command()
@takes("config", "overrides", "dataset", "run_id", "debug")
def embeddings(**given: Any) -> None:
    """Compute the features of all images by a frozen network, and score a linear probe on them over the folds."""
    _run(["embeddings"], **given)


@app.command()
@takes("config", "overrides", "dataset", "run_id", "debug")
def ensemble(**given: Any) -> None:
    """Combine the models of all folds into one predictor, and evaluate it on the test split."""
    _run([], assets=ENSEMBLE_ASSETS, **given)


@app.command()
@takes("config", "overrides", "dataset", "node", "run_id", "debug")
def experiment(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of an experiment (a file of configs/experiments, without .yaml), or the path of a file."
        ),
    ],
    **given: Any,
) -> None:
    """Train and evaluate with an experiment's settings, and rank it on the leaderboard."""
    _run(["train", "evaluate"], experiment=name, **given)


@app.command()
@takes("study", "trials", "experiment", "queue", "config", "overrides", "dataset", "run_id", "debug")
def tune(
    study: Annotated[
        str,
        typer.Option(
            "--study", metavar="NAME", help="Name of a study: a file of configs/studies, without .yaml."
        ),
    ],
    trials: Annotated[
        int | None, typer.Option("--trials", help="Number of trials, those of earlier runs included.")
    ] = None,
    experiment: Experiment = None,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="Let the Dagster daemon run every trial as a run of its own, and wait."),
    ] = False,
    **given: Any,
) -> None:
    """Search for better training settings, scored over folds of the training side; the test split is not used."""
    chosen = [f"tune.study={study}", *([f"tune.trials={trials}"] if trials is not None else [])]
    given["overrides"] = [*(given["overrides"] or []), *chosen]
    _run(["tune"], experiment=experiment, queue=queue, **given)


@app.command()
def backfill(
    select: Annotated[
        str,
        typer.Option(
            "--select", metavar="ASSETS", help="Assets in Dagster's syntax, e.g. 'fold_evaluation+'."
        ),
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="OWNER/SLUG", help="Data set; repeatable; default: all."),
    ] = None,
    only_missing: Annotated[
        bool,
        typer.Option("--only-missing", help="Only partitions that are missing or failed."),
    ] = False,
    experiment: Experiment = None,
    debug: Debug = False,
) -> None:
    """Materialise many partitions through the Dagster daemon, and wait for it."""
    with sentences(debug):
        from brainmri_dagster.commands.backfill import backfill as fill
        from brainmri_dagster.commands.launch import open_instance
        from brainmri_dagster.graph.resources import default_project

        with open_instance(default_project().layout) as instance:
            code = fill(instance, select, dataset or [], only_missing=only_missing, experiment=experiment)
    raise typer.Exit(code)


@app.command()
def verify(config: Config = None, debug: Debug = False) -> None:
    """Check every pointer, file, hash, manifest, pack and checkpoint of the project, and name what is damaged."""
    from tqdm import tqdm

    from brainmri_core.verify import verify as check

    with sentences(debug), tqdm(desc="verifying", unit="record", disable=None) as bar:
        found = check(opened(config)[0], bar.update)
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
        bool, typer.Option("--dry-run/--delete", help="Only list what would be removed, or remove it.")
    ] = True,
    keep_days: Annotated[
        int,
        typer.Option(
            "--keep-days",
            min=1,
            help="In a bucket, keep what is younger; longer than the longest stage.",
        ),
    ] = 7,
    debug: Debug = False,
) -> None:
    """Remove results that no pointer, history copy, manifest or champion refers to, and half-written files of dead processes."""
    with sentences(debug):
        from brainmri_core.gc import collect_garbage
        from brainmri_dagster.commands.launch import open_instance
        from brainmri_dagster.running.dead_runs import close_dead_runs

        layout, settings = opened(config)
        with open_instance(layout) as instance:
            close_dead_runs(instance, layout)
        if layout.url:
            project.clear_bucket(layout, settings, keep_days, dry_run=dry_run)
            return
        found = collect_garbage(layout, settings, dry_run=dry_run)
    for path in [*found.results, *found.temporaries]:
        print(layout.relative(path))
    what = f"{len(found.results)} results and {len(found.temporaries)} temporaries, {found.size / 1e6:.1f} MB"
    print(f"{'Would remove' if dry_run else 'Removed'} {what}{'; --delete does it' if dry_run else ''}.")


app.command()(project.init)
app.command("add-dataset")(project.add_dataset)
app.command()(project.datasets)
app.command()(model.predict)
app.command()(model.compare)
app.command("app")(model.show)
app.command()(overlap.overlap)
app.command()(model.export)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
