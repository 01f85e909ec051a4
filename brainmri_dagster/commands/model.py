"""Commands that use a model: predict, compare, export and the local page. Heavy imports happen when work starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brainmri_core.config.formats import READABLE
from brainmri_dagster.commands.options import Config, Debug, opened
from brainmri_dagster.commands.sentences import sentences

if TYPE_CHECKING:
    from brainmri_core.predict import Classifier

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="Checkpoint or evaluation folder; default: the champion, else models/best.pth."
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", metavar="OWNER/SLUG", help="Data set whose champion is used, if several have one."
    ),
]


class PredictionFormat(StrEnum):
    """How predictions are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class ExportFormat(StrEnum):
    """What a checkpoint can be exported to."""

    ONNX = "onnx"
    TORCH_EXPORT = "torch_export"
    SAFETENSORS = "safetensors"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help=f"Images, folders or patterns; {READABLE}."),
    ],
    checkpoint: Checkpoint = None,
    overlay: Annotated[
        Path | None,
        typer.Option("--overlay", metavar="DIR", help="Write a Grad-CAM picture of each image here."),
    ] = None,
    form: Annotated[
        PredictionFormat, typer.Option("--format", help="How to print the results.")
    ] = PredictionFormat.TABLE,
    dataset: Dataset = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Classify images: calibrated probabilities, and a flag for images unlike the training images."""
    failed, no_map = 0, None
    with sentences(debug):
        from brainmri_core.images.listing import list_images
        from brainmri_dagster.commands.printing import Row, render, with_overlays

        classifier = _classifier(checkpoint, dataset, config)
        rows = with_overlays(classifier.stream(list_images(paths), maps=overlay is not None), overlay)

        def counted() -> Iterator[Row]:
            nonlocal failed, no_map
            for row in rows:
                failed += row[0].error is not None
                no_map = row[0].no_heatmap or no_map
                yield row

        if form is not PredictionFormat.TABLE:
            for text in classifier.caveats():
                print(text, file=sys.stderr)
        for line in render(counted(), classifier, form.value):
            print(line, flush=True)
    if no_map:
        print(f"brainmri: no overlays were written: {no_map}.", file=sys.stderr)
    if failed:
        print(f"brainmri: {failed} of the images could not be predicted; see their errors.", file=sys.stderr)
        raise typer.Exit(1)


def _classifier(checkpoint: Path | None, dataset: str | None, config: Path | None) -> Classifier:
    from brainmri_core.classifier.search import default_checkpoint
    from brainmri_core.predict import Classifier as Loader

    layout, settings = opened(config)
    if checkpoint is None:
        checkpoint = default_checkpoint(layout, settings.train.io.out_models, dataset)
    return Loader.load(checkpoint, env=settings.env)


def compare(
    run_a: Annotated[str, typer.Argument(help="Run id of an evaluation, or its folder.")],
    run_b: Annotated[str, typer.Argument(help="Run id or folder of the other evaluation.")],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="File to write the page to; default: in outputs/comparisons."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="Resamples of patients or groups.")
    ] = 2000,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Compare two evaluations of the same test images, image by image: is the difference beyond noise?"""
    with sentences(debug):
        from brainmri_core.compare import compare as compared
        from brainmri_core.compare import find_evaluation
        from brainmri_core.pages.comparison_page import comparison_lines, write_comparison

        layout, settings = opened(config)
        a, b = (find_evaluation(layout, name) for name in (run_a, run_b))
        found = compared(a, b, (run_a, run_b), resamples=resamples, seed=settings.env.seed)
        path = html or layout.comparison(a.name, b.name)
        write_comparison(path, found)
        for line in comparison_lines(found):
            print(line)
        print(f"page: {path}")


def show(
    checkpoint: Checkpoint = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port on loopback; 0: a free one.")] = 8765,
    dataset: Dataset = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Serve a local page: drop an image on it to see probabilities, the overlay and the nearest training images."""
    with sentences(debug):
        classifier = _classifier(checkpoint, dataset, config)
        from brainmri_core.app import serve

        serve(classifier, port)


def export(
    form: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.ONNX,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write; default: beside the checkpoint."),
    ] = None,
    checkpoint: Checkpoint = None,
    dataset: Dataset = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Export a checkpoint for another runtime, with its classes and preprocessing."""
    with sentences(debug):
        from brainmri_core.classifier.search import default_checkpoint, find_classifier

        if checkpoint is None:
            layout, settings = opened(config)
            checkpoint = default_checkpoint(layout, settings.train.io.out_models, dataset)
        from brainmri_core.export import SUFFIXES, export_checkpoint

        source = find_classifier(checkpoint.expanduser())[0]
        target = out or source.with_suffix(SUFFIXES[form.value])
        print(export_checkpoint(source, target, form.value))
