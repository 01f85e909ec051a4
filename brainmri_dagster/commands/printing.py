"""Print predictions as a table, JSON or CSV while they come in, and write overlay pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from brainmri_core.escaping import printable
from brainmri_core.pictures.thumbnails import Sheet, overlay, shortened, to_rgb
from brainmri_core.predict import NOTICE, Classifier, Prediction
from brainmri_core.system.storage import write_bytes

Format = Literal["table", "json", "csv"]
Row = tuple[Prediction, Path | None]

_NAME_WIDTH = 44
_TILE = 320


def with_overlays(predictions: Iterable[Prediction], folder: Path | None) -> Iterator[Row]:
    """Pair each prediction with the picture written for it: the image beside its Grad-CAM overlay.

    Parameters
    ----------
    predictions : iterable of Prediction
        With Grad-CAM maps if `folder` is given.
    folder : pathlib.Path or None
        Where pictures go, named ``000001-<name>.png``; None writes none.
    """
    for number, item in enumerate(predictions, 1):
        if folder is None or item.pixels is None or item.heatmap is None:
            yield item, None
            continue
        path = folder / f"{number:06d}-{printable(Path(item.name).stem)[:80]}.png"
        sheet = Sheet("Research software, not a medical device", 2, 1, tile=_TILE)
        sheet.heading(0, "Grad-CAM")
        captions = [
            shown_name(item),
            f"predicted {item.predicted} ({100 * item.probabilities[item.predicted]:.1f}%)",
        ]
        sheet.place(
            0, 0, to_rgb(item.pixels), [*captions, "unlike the training images"][: 2 + bool(item.outlier)]
        )
        sheet.place(0, 1, overlay(item.pixels, item.heatmap), ["what supports this class"])
        sheet.bar("no support", "strongest support in this image")
        buffer = io.BytesIO()
        sheet.image.save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
        yield item, path


def shown_name(item: Prediction) -> str:
    """Return an image's name, fit for a terminal, with its slice where a file has several."""
    return printable(item.name) + (f" [{item.slice}/{item.slices}]" if item.slice is not None else "")


def render(rows: Iterable[Row], classifier: Classifier, form: Format) -> Iterator[str]:
    """Yield the lines of a result as the predictions come in."""
    return {"table": _table, "json": _json, "csv": _csv}[form](rows, classifier)


def _table(rows: Iterable[Row], classifier: Classifier) -> Iterator[str]:
    classes = classifier.classes
    wide = max(len("predicted"), *map(len, classes))
    widths = [max(6, len(name)) for name in classes]
    yield from classifier.caveats()
    yield ""
    heads = "  ".join(f"{name:>{width}}" for name, width in zip(classes, widths, strict=True))
    yield f"{'image':{_NAME_WIDTH}}  {'predicted':{wide}}  {heads}  warning"
    for item, _ in rows:
        name = f"{shortened(shown_name(item), _NAME_WIDTH):{_NAME_WIDTH}}"
        if item.error is not None:
            yield f"{name}  {'–':{wide}}  {'  '.join(f'{chr(8211):>{width}}' for width in widths)}  {item.error}"
            continue
        shares = "  ".join(
            f"{100 * item.probabilities[key]:{width - 1}.1f}%"
            for key, width in zip(classes, widths, strict=True)
        )
        warning = "unlike the training images" if item.outlier else ""
        yield f"{name}  {item.predicted:{wide}}  {shares}  {warning}".rstrip()


def _json(rows: Iterable[Row], classifier: Classifier) -> Iterator[str]:
    outliers = classifier.outliers
    head = {
        "notice": NOTICE,
        "caveats": classifier.caveats()[1:],
        "checkpoint": str(classifier.weights),
        "model": classifier.meta.model_name,
        "run_id": classifier.meta.run_id,
        "classes": classifier.classes,
        "temperature": classifier.temperature,
        "outlier_threshold": None if outliers is None else outliers.threshold,
    }
    yield json.dumps(head, indent=1)[:-2] + ',\n "predictions": ['
    separator = ""
    for item, picture in rows:
        yield separator + "  " + json.dumps(_record(item, picture), allow_nan=False)
        separator = ","
    yield " ]\n}"


def _record(item: Prediction, picture: Path | None) -> dict[str, Any]:
    usable = item.error is None
    return {
        "image": item.name,
        "slice": item.slice,
        "predicted": item.predicted if usable else None,
        "probability": item.probabilities[item.predicted] if usable else None,
        "probabilities": item.probabilities if usable else None,
        "outlier_score": item.outlier_score,
        "outlier": item.outlier,
        "overlay": None if picture is None else str(picture),
        "error": item.error,
    }


def _csv(rows: Iterable[Row], classifier: Classifier) -> Iterator[str]:
    classes = classifier.classes
    columns = ["image", "slice", "predicted", "probability", *(f"prob_{name}" for name in classes)]
    columns += ["outlier_score", "outlier", "overlay", "error"]
    yield _line(columns)
    for item, picture in rows:
        values = _record(item, picture)
        values |= {f"prob_{name}": item.probabilities.get(name) for name in classes}
        values["image"] = printable(item.name)
        yield _line([values[name] for name in columns])


def _line(values: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(["" if value is None else value for value in values])
    return buffer.getvalue()
