"""The prediction for one image."""

from __future__ import annotations

from dataclasses import dataclass, field

from brainmri_core.arrays import F32, U8

NOTICE = "Research software, not a medical device: not for diagnosis, triage or treatment of anyone."


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, or the reason why there is none.

    Attributes
    ----------
    name : str
        The file as named by the caller; for other input ``bytes 0``, ``array 1``, ``tensor 2`` or ``image 3``, with its
        position from 0.
    slice, slices : int or None
        Number of the slice, from 1, and number of slices of its file; None for ordinary images.
    error : str or None
        Why the image was not predicted; then all following fields are empty.
    predicted : str
        The most probable class.
    probabilities : dict
        Class to probability, calibrated if the classifier has a temperature.
    logits : numpy.ndarray or None
        float32 ``(K,)``.
    outlier_score : float or None
        Distance from the validation images; None without an outlier model.
    outlier : bool or None
        Whether the score is above the threshold; then the probabilities are not reliable.
    pixels : numpy.ndarray or None
        uint8, the fitted image; only with maps or traces.
    heatmap : numpy.ndarray or None
        float32 ``(S, S)`` in [0, 1]: Grad-CAM of the predicted class; only with maps.
    no_heatmap : str or None
        Why there is no map although it was requested.
    embedding : numpy.ndarray or None
        float32 ``(D,)``; only with traces.
    width, height : int or None
        Size of the image before fitting; only with traces.
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
    no_heatmap: str | None = None
    embedding: F32 | None = None
    width: int | None = None
    height: int | None = None
