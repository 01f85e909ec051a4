"""What a classifier says about one image."""

from __future__ import annotations

from dataclasses import dataclass, field

from brainmri_core.arrays import F32, U8

NOTICE = "Research software, not a medical device: not for diagnosis, triage or treatment of anyone."


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image, or why it says nothing.

    Attributes
    ----------
    name : str
        The file as it was named; ``bytes 0``, ``array 1``, ``tensor 2`` or ``image 3`` of what was given otherwise, by its
        place from 0.
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
        uint8, the fitted image, where maps or traces were asked for.
    heatmap : numpy.ndarray or None
        float32 ``(S, S)`` in [0, 1]: Grad-CAM of the predicted class, where maps were asked for.
    no_heatmap : str or None
        Why there is none although it was asked for.
    embedding : numpy.ndarray or None
        float32 ``(D,)``, where traces were asked for.
    width, height : int or None
        Size of the image before it was fitted, where traces were asked for.
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
