"""Predict: calibrated class probabilities of images, prepared exactly as training and evaluation prepared theirs."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from brainmri_core.classifier_search import find_classifier
from brainmri_core.config import EnvConfig
from brainmri_core.config.base import Precision
from brainmri_core.cores import cores
from brainmri_core.errors import ConfigError, IntegrityError
from brainmri_core.images.decode import DecodeError
from brainmri_core.images.fit import fit_image
from brainmri_core.images.isolation import MAX_FILE_BYTES, Answer, finite, no_answer, stream_answers
from brainmri_core.learning.checkpoint import CheckpointMeta, load_model
from brainmri_core.learning.device import choose_device
from brainmri_core.learning.inference import predict_evenly
from brainmri_core.reporting.calibration import probabilities
from brainmri_core.reporting.gradcam import maps_of_rows
from brainmri_core.reporting.outliers import OutlierModel
from brainmri_core.resize import COLOUR_THRESHOLD
from brainmri_core.text import printable

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Source = str | Path | bytes | U8

NOTICE = "Research software, not a medical device: not for diagnosis, triage or treatment of anyone."
_BATCH_SIZE = 32
_LEAST_SHARE = 32  # images that make another worker process worth its start


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image, or why it says nothing.

    Attributes
    ----------
    name : str
        The file as it was named, or ``image 3`` for the third of the images given as bytes or arrays.
    slice, slices : int or None
        Number of the slice, from 1, and how many its file holds; None for ordinary images.
    error : str or None
        Why the image was not predicted; then all that follows is empty.
    predicted : str
        The likeliest class.
    probabilities : dict
        Class to probability, calibrated where the classifier is.
    logits : numpy.ndarray or None
        float32 ``(K,)``.
    outlier_score : float or None
        Distance from the validation images; None without an outlier model.
    outlier : bool or None
        Whether the score lies above the threshold: the probabilities then mean little.
    pixels : numpy.ndarray or None
        uint8, the fitted image, where maps were asked for.
    heatmap : numpy.ndarray or None
        float32 ``(S, S)`` in [0, 1]: Grad-CAM of the predicted class, where maps were asked for.
    """

    name: str
    slice: int | None = None
    slices: int | None = None
    error: str | None = None
    predicted: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    logits: F32 | None = None
    outlier_score: float | None = None
    outlier: bool | None = None
    pixels: U8 | None = None
    heatmap: F32 | None = None


@dataclass(frozen=True)
class _Fitted:
    """One image at the model's size, and where it belongs in the output."""

    index: int
    name: str
    slice: int | None
    slices: int | None
    pixels: U8


@dataclass(frozen=True)
class Classifier:
    """A checkpoint ready for use.

    Attributes
    ----------
    weights : pathlib.Path
        Its file.
    evaluation : pathlib.Path or None
        Folder of the evaluation that calibrated it; None for a bare checkpoint.
    temperature : float or None
        Divides the logits; None: the probabilities are not calibrated.
    outliers : OutlierModel or None
        None: nothing is flagged.
    batch_size, precision, mirror
        Those of the evaluation, so that the same image gets the same bits.
    """

    model: nn.Module = field(repr=False)
    meta: CheckpointMeta = field(repr=False)
    weights: Path
    evaluation: Path | None
    temperature: float | None
    outliers: OutlierModel | None = field(repr=False)
    batch_size: int
    precision: Precision
    mirror: bool
    device: torch.device

    @classmethod
    def load(cls, path: str | Path, *, env: EnvConfig | None = None) -> Classifier:
        """Load a classifier.

        Parameters
        ----------
        path : str or pathlib.Path
            A checkpoint, or the folder (or ``classifier.json``) of an evaluation. The evaluation of a checkpoint is
            looked for beside it and in the project it lies in.
        env : EnvConfig or None
            Says whether a CUDA device is wanted.

        Raises
        ------
        ModelError
            If the checkpoint is missing, damaged or foreign.
        IntegrityError
            If the evaluation's files are damaged or belong to another checkpoint.
        """
        weights, evaluation, described, outliers = find_classifier(Path(path).expanduser())
        device = choose_device(env or EnvConfig())
        model, meta = load_model(weights, device)
        if described is not None and described.classes != meta.classes:
            raise IntegrityError(
                f"{evaluation} knows the classes {', '.join(described.classes)} and {weights} others; run evaluate again."
            )
        return cls(
            model,
            meta,
            weights,
            evaluation,
            described.temperature if described else None,
            outliers,
            described.batch_size if described else _BATCH_SIZE,
            described.precision if described else "fp32",
            described.mirror if described else False,
            device,
        )

    @property
    def classes(self) -> list[str]:
        """Class names by index."""
        return self.meta.classes

    def caveats(self) -> list[str]:
        """Return what a reader of this classifier's results must know, the notice first."""
        found = [NOTICE]
        if self.evaluation is None:
            found.append(
                "No evaluation of this checkpoint was found: its probabilities are not calibrated and no image is "
                "flagged as unlike the training images; run evaluate."
            )
            return found
        if self.temperature is None:
            found.append(
                "The probabilities are not calibrated: the evaluation had no validation images to do it with."
            )
        if self.outliers is None:
            found.append(
                "No image is flagged as unlike the training images: too few validation images to set the limit."
            )
        return found

    def predict(self, images: Iterable[Source], *, maps: bool = False) -> list[Prediction]:
        """Predict images, all results at once; see `stream`."""
        return list(self.stream(images, maps=maps))

    def stream(self, images: Iterable[Source], *, maps: bool = False) -> Iterator[Prediction]:
        """Predict images one batch at a time, in the order given.

        Parameters
        ----------
        images : iterable
            Paths, file contents, or arrays: uint8 ``(H, W)`` or ``(H, W, 3)``. Files are decoded in worker processes.
        maps : bool
            Add the fitted pixels and the Grad-CAM map of the predicted class.

        Yields
        ------
        Prediction
            One per image; for DICOM and NIfTI, one per slice. A file that cannot be used yields one with its `error`.
        """
        sources = list(images)
        names = [
            str(item) if isinstance(item, str | Path) else f"image {number}"
            for number, item in enumerate(sources, 1)
        ]
        order = _Order(len(sources))
        batch: list[_Fitted] = []
        with closing(self._fitted(sources, names)) as found:
            for index, item in found:
                if item is None:
                    order.end(index)
                elif isinstance(item, Prediction):
                    order.expect(index)
                    order.add(index, item)
                else:
                    order.expect(index)
                    batch.append(item)
                if len(batch) == self.batch_size:
                    self._flush(batch, order, maps)
                yield from order.ready()
        self._flush(batch, order, maps)
        yield from order.ready()

    def _fitted(
        self, sources: Sequence[Source], names: Sequence[str]
    ) -> Generator[tuple[int, _Fitted | Prediction | None], None, None]:
        """Yield images at the model's size, in no particular order, and None where a file has no more."""
        files = [index for index, item in enumerate(sources) if not isinstance(item, np.ndarray)]
        for index, item in enumerate(sources):
            if isinstance(item, np.ndarray):
                yield index, self._array(index, names[index], item)
                yield index, None
        wanted = self.meta.preprocessing
        settings = {
            "size": wanted.pack_size,
            "fit": wanted.fit,
            "gray": not wanted.colour,
            "gray_ranges": wanted.gray_ranges,
        }
        workers = min(cores(), max(1, -(-len(files) // _LEAST_SHARE)))
        answers = stream_answers(
            lambda number: _read(sources[files[number]]),
            [names[index] for index in files],
            workers,
            "brainmri_core.images.fit_worker",
            json.dumps(settings),
        )
        done = [0] * len(files)
        with closing(answers):
            for number, answer in answers:
                index, said = files[number], answer[0].get("slice", 1)
                slice_number = said if isinstance(said, int) else 1
                if slice_number > done[number] or "reason" in answer[0]:  # else seen before its worker died
                    done[number] = slice_number
                    yield index, self._answered(index, names[index], answer)
                if not answer[0].get("more"):
                    yield index, None

    def _answered(self, index: int, name: str, answer: Answer) -> _Fitted | Prediction:
        header, body = answer
        if "reason" in header:
            return Prediction(name, error=str(header["reason"]))
        wanted = self.meta.preprocessing
        shape = (wanted.pack_size, wanted.pack_size, 3)[: 3 if wanted.colour else 2]
        try:
            pixels = np.frombuffer(body, np.uint8).reshape(shape)
            slices, colourfulness = int(header["slices"]), finite(header["colourfulness"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return Prediction(name, error=no_answer(name))
        return self._checked(index, name, header.get("slice"), slices, pixels, colourfulness)

    def _array(self, index: int, name: str, pixels: U8) -> _Fitted | Prediction:
        if (
            pixels.dtype != np.uint8
            or pixels.shape[2:] not in ((), (3,))
            or pixels.ndim < 2
            or 0 in pixels.shape
        ):
            raise ConfigError(
                f"{name} is an array of {pixels.dtype} {pixels.shape}; give uint8 of shape (H, W) or (H, W, 3)."
            )
        wanted = self.meta.preprocessing
        if wanted.colour and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        elif not wanted.colour and pixels.ndim == 3:
            from PIL import Image

            pixels = np.asarray(Image.fromarray(pixels).convert("L"))
        return self._checked(index, name, None, 1, fit_image(pixels, wanted.pack_size, wanted.fit), 0.0)

    def _checked(
        self, index: int, name: str, number: int | None, count: int, pixels: U8, colourfulness: float
    ) -> _Fitted | Prediction:
        """Refuse what no model of MR slices can be asked about."""
        slices = count if number is not None and count > 1 else None
        number = number if slices else None
        shown = printable(name) if number is None else f"{printable(name)}, slice {number},"
        if pixels.min() == pixels.max():
            return Prediction(name, number, slices, f"{shown} is blank; there is nothing to classify.")
        if colourfulness > COLOUR_THRESHOLD and not self.meta.preprocessing.colour:
            return Prediction(
                name,
                number,
                slices,
                f"{shown} is a colour picture, and the model knows gray MR slices only; it was left out.",
            )
        return _Fitted(index, name, number, slices, pixels)

    def _flush(self, batch: list[_Fitted], order: _Order, maps: bool) -> None:
        if batch:
            for item, result in zip(batch, self._batch(batch, maps), strict=True):
                order.add(item.index, result)
            batch.clear()

    def _batch(self, batch: Sequence[_Fitted], maps: bool) -> list[Prediction]:
        pixels, rows = np.stack([item.pixels for item in batch]), np.arange(len(batch))
        prepared = self.meta.preprocessing
        found = predict_evenly(
            self.model,
            pixels,
            rows,
            prepared,
            device=self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            tta=self.mirror,
            progress=False,
        )
        assert found.embeddings is not None
        called = np.asarray(found.logits.argmax(axis=1), np.int64)
        shares = probabilities(found.logits, self.temperature or 1.0)
        scores = None if self.outliers is None else self.outliers.score(found.embeddings)
        heat = None
        if maps:
            heat = maps_of_rows(
                self.model,
                self.meta.model_name,
                pixels,
                rows,
                called,
                prepared,
                device=self.device,
                batch_size=self.batch_size,
            ).gradcam
        return [
            Prediction(
                item.name,
                item.slice,
                item.slices,
                predicted=self.classes[called[row]],
                probabilities=dict(zip(self.classes, shares[row].tolist(), strict=True)),
                logits=found.logits[row],
                outlier_score=None if scores is None else float(scores[row]),
                outlier=None
                if scores is None or self.outliers is None
                else bool(scores[row] > self.outliers.threshold),
                pixels=item.pixels if maps else None,
                heatmap=None if heat is None else heat[row],
            )
            for row, item in enumerate(batch)
        ]


class _Order:
    """Brings results back into the order of their files: workers answer as they get done."""

    def __init__(self, files: int) -> None:
        self.files, self.turn = files, 0
        self.expected: dict[int, int] = {}
        self.found: dict[int, list[Prediction]] = {}
        self.ended: set[int] = set()

    def expect(self, index: int) -> None:
        self.expected[index] = self.expected.get(index, 0) + 1

    def add(self, index: int, result: Prediction) -> None:
        self.found.setdefault(index, []).append(result)

    def end(self, index: int) -> None:
        self.ended.add(index)

    def ready(self) -> Iterator[Prediction]:
        """Yield all results of the files whose turn it is."""
        while self.turn in self.ended and len(self.found.get(self.turn, ())) == self.expected[self.turn]:
            yield from self.found.pop(self.turn)
            self.turn += 1


def _read(source: Source) -> bytes:
    """Return a file's content; one that cannot be read costs no other."""
    if isinstance(source, bytes):
        return source
    path = Path(str(source))
    shown = printable(str(path))
    try:
        if not path.is_file():
            what = "is a folder without images" if path.is_dir() else "does not exist or is no file"
            raise DecodeError(f"{shown} {what}; check its name.")
        if (size := path.stat().st_size) <= MAX_FILE_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise DecodeError(f"{shown} cannot be read ({error.strerror or type(error).__name__}).") from None
    raise DecodeError(
        f"{shown} has {size >> 20} MiB, more than the {MAX_FILE_BYTES >> 20} MiB that are read."
    )
