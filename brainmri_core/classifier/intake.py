"""From the input of a classifier to fitted images: files are decoded in worker processes and arrive in any order."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from brainmri_core.arrays import U8
from brainmri_core.classifier.prediction import Prediction
from brainmri_core.classifier.sources import Item, pixels_of, read_item
from brainmri_core.escaping import printable
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.fit import fit_image
from brainmri_core.images.isolation import Answer, finite, no_answer, stream_answers
from brainmri_core.images.preparation import COLOUR_THRESHOLD
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.system.threads import cores

_LEAST_SHARE = 32  # images per worker process below which its start takes longer than it saves


@dataclass(frozen=True)
class Fitted:
    """One fitted image.

    Attributes
    ----------
    index : int
        Position of its item in the input.
    slice, slices : int or None
        Number of the slice, from 1, and number of slices of its file.
    pixels : numpy.ndarray
        uint8 ``(P, P)`` or ``(P, P, 3)``.
    width, height : int
        Size before fitting.
    """

    index: int
    name: str
    slice: int | None
    slices: int | None
    pixels: U8
    width: int
    height: int


class Order:
    """Bring results back into the order of their items, since workers answer in any order."""

    def __init__(self) -> None:
        self.turn = 0
        self.expected: dict[int, int] = {}
        self.found: dict[int, list[Prediction]] = {}
        self.ended: set[int] = set()

    def expect(self, index: int) -> None:
        """Count one more result of an item."""
        self.expected[index] = self.expected.get(index, 0) + 1

    def add(self, index: int, result: Prediction) -> None:
        """Keep a result until its item's turn."""
        self.found.setdefault(index, []).append(result)

    def end(self, index: int) -> None:
        """Note that no more results of an item will be expected."""
        self.ended.add(index)

    def ready(self) -> Iterator[Prediction]:
        """Yield all results of the items whose turn it is."""
        while self.turn in self.ended and len(self.found.get(self.turn, ())) == self.expected[self.turn]:
            yield from self.found.pop(self.turn)
            self.turn += 1


def fitted(
    items: Sequence[Item], wanted: Preprocessing, workers: int | None = None
) -> Generator[tuple[int, Fitted | Prediction | None], None, None]:
    """Yield the index of an item with one of its images, in any order, and with None when an item has no more.

    Files are decoded in worker processes, one for each core unless `workers` says how many. An image that cannot be used is a `Prediction` with its error.
    """
    files = [index for index, item in enumerate(items) if item.is_file]
    for index, item in enumerate(items):
        if not item.is_file:
            yield index, _of_pixels(index, item, wanted)
            yield index, None
    settings = {
        "size": wanted.pack_size,
        "fit": wanted.fit,
        "gray": not wanted.colour,
        "gray_ranges": wanted.gray_ranges,
        "any_modality": wanted.modality == "any",
    }
    workers = min(workers or cores(), max(1, -(-len(files) // _LEAST_SHARE)))
    answers = stream_answers(
        lambda number: read_item(items[files[number]]),
        [items[index].name for index in files],
        workers,
        "brainmri_core.images.fit_worker",
        json.dumps(settings),
    )
    done = [0] * len(files)
    with closing(answers):
        for number, answer in answers:
            index, said = files[number], answer[0].get("slice", 1)
            slice_number = said if isinstance(said, int) else 1
            # Slices that were answered before a worker died are answered again: skip them.
            if slice_number > done[number] or "reason" in answer[0]:
                done[number] = slice_number
                yield index, _answered(index, items[index].name, answer, wanted)
            if not answer[0].get("more"):
                yield index, None


def _of_pixels(index: int, item: Item, wanted: Preprocessing) -> Fitted | Prediction:
    try:
        pixels, colour = pixels_of(item, wanted)
    except DecodeError as error:
        return Prediction(item.name, error=str(error))
    size = fit_image(pixels, wanted.pack_size, wanted.fit)
    height, width = pixels.shape[:2]
    return _checked(Fitted(index, item.name, None, 1, size, width, height), colour, wanted)


def _answered(index: int, name: str, answer: Answer, wanted: Preprocessing) -> Fitted | Prediction:
    header, body = answer
    if "reason" in header:
        return Prediction(name, error=str(header["reason"]))
    shape = (wanted.pack_size, wanted.pack_size, 3)[: 3 if wanted.colour else 2]
    try:
        pixels = np.frombuffer(body, np.uint8).reshape(shape)
        slices, colour = int(header["slices"]), finite(header["colourfulness"])
        width, height = int(finite(header["width"])), int(finite(header["height"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return Prediction(name, error=no_answer(name))
    return _checked(Fitted(index, name, header.get("slice"), slices, pixels, width, height), colour, wanted)


def _checked(found: Fitted, colour: float, wanted: Preprocessing) -> Fitted | Prediction:
    """Refuse blank images, and colour images for a gray model; number slices only in files with several."""
    several = found.slice is not None and found.slices is not None and found.slices > 1
    number, slices = (found.slice, found.slices) if several else (None, None)
    shown = printable(found.name) if number is None else f"{printable(found.name)}, slice {number},"
    error = None
    if found.pixels.min() == found.pixels.max():
        error = f"{shown} is blank; there is nothing to classify."
    elif colour > COLOUR_THRESHOLD and not wanted.colour:
        known = "gray MR slices" if wanted.modality == "MR" else "gray slices"
        error = f"{shown} is a colour picture, and the model knows {known} only; it was left out."
    if error is not None:
        return Prediction(found.name, number, slices, error)
    return replace(found, slice=number, slices=slices)
