"""Predict calibrated class probabilities of images, which are prepared exactly as for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from brainmri_core.classifier.inference import Inference
from brainmri_core.classifier.intake import Fitted, Order, fitted
from brainmri_core.classifier.prediction import NOTICE, Prediction
from brainmri_core.classifier.search import find_classifier
from brainmri_core.classifier.sources import Item, Source, items_of
from brainmri_core.config import EnvConfig
from brainmri_core.errors import IntegrityError
from brainmri_core.evaluation.outliers import OutlierModel
from brainmri_core.learning.checkpoint import CheckpointMeta, load_model
from brainmri_core.learning.device import choose_device

__all__ = ["NOTICE", "Classifier", "Prediction"]

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Classifier:
    """A checkpoint ready for use.

    Attributes
    ----------
    weights : pathlib.Path
        The file of the checkpoint.
    evaluation : pathlib.Path or None
        Folder of the evaluation that calibrated it; None for a checkpoint without one.
    inference : Inference
        The model, with the settings of that evaluation.
    """

    weights: Path
    evaluation: Path | None
    inference: Inference

    @classmethod
    def load(cls, path: str | Path, *, env: EnvConfig | None = None) -> Classifier:
        """Load a classifier.

        Parameters
        ----------
        path : str or pathlib.Path
            A checkpoint, or the folder (or ``classifier.json``) of an evaluation. The evaluation of a checkpoint is
            looked for beside it and in the project that holds it.
        env : EnvConfig or None
            Says whether to use a CUDA device.

        Returns
        -------
        Classifier
            The model, with the calibration and outlier limit of the evaluation, if one was found.

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
        inference = Inference(
            model,
            meta,
            device,
            described.temperature if described else None,
            outliers,
            described.batch_size if described else _BATCH_SIZE,
            described.precision if described else "fp32",
            described.mirror if described else False,
        )
        return cls(weights, evaluation, inference)

    @property
    def meta(self) -> CheckpointMeta:
        """The record inside the checkpoint."""
        return self.inference.meta

    @property
    def classes(self) -> list[str]:
        """Class names by index."""
        return self.meta.classes

    @property
    def temperature(self) -> float | None:
        """The temperature that divides the logits; None where the probabilities are not calibrated."""
        return self.inference.temperature

    @property
    def outliers(self) -> OutlierModel | None:
        """The model that flags images unlike the training images; None where no image can be flagged."""
        return self.inference.outliers

    def caveats(self) -> list[str]:
        """Return the warnings to show with every result of this classifier, the notice first."""
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

    def predict(self, images: Source | Iterable[Source], *, maps: bool = False) -> list[Prediction]:
        """Predict images, all results at once; see `stream`."""
        return list(self.stream(images, maps=maps))

    def stream(
        self,
        images: Source | Iterable[Source],
        *,
        maps: bool = False,
        traces: bool = False,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """Predict images one batch at a time, in the order given.

        Parameters
        ----------
        images : path, bytes, array, tensor, Pillow image, or iterable of them
            Paths name files, folders (searched to any depth) or patterns; bytes are the content of a file. Arrays are
            ``(H, W)`` or ``(H, W, 3)``, tensors ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)``; both are uint8, or floats from
            0 for black to 1 for white. A 4-dimensional array or tensor is several images.
            Where the training images were files of floats or of 16 or 32 bits, gray arrays of that type are read on the
            scale of those files instead.
        maps : bool
            Add the fitted pixels and the Grad-CAM map of the predicted class.
        traces : bool
            Add the values that images are compared by: the fitted pixels, the embedding, and the size before fitting.
        workers : int or None
            Processes that decode files; None takes one per core.

        Yields
        ------
        Prediction
            One per image; for DICOM and NIfTI, one per slice. A file that cannot be used yields one with its `error`.

        Raises
        ------
        InputTypeError
            If an image is of none of these types (it is also a `TypeError`). It is raised at the call, before any image is
            read.
        """
        return self._stream(items_of(images, self.meta.preprocessing), maps, traces, workers)

    def _stream(
        self, items: Sequence[Item], maps: bool, traces: bool, workers: int | None
    ) -> Iterator[Prediction]:
        order = Order()
        batch: list[Fitted] = []
        with closing(fitted(items, self.meta.preprocessing, workers)) as found:
            for index, item in found:
                if item is None:
                    order.end(index)
                elif isinstance(item, Prediction):
                    order.expect(index)
                    order.add(index, item)
                else:
                    order.expect(index)
                    batch.append(item)
                if len(batch) == self.inference.batch_size:
                    self._flush(batch, order, maps, traces)
                yield from order.ready()
        self._flush(batch, order, maps, traces)
        yield from order.ready()

    def _flush(self, batch: list[Fitted], order: Order, maps: bool, traces: bool) -> None:
        if batch:
            for item, result in zip(
                batch, self.inference.predict(batch, maps=maps, traces=traces), strict=True
            ):
                order.add(item.index, result)
            batch.clear()
