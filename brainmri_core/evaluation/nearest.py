"""Search for the nearest images by the features of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainmri_core.arrays import F32

_LEAST_SPREAD = 1e-4
"""A feature is constant if its standard deviation, relative to its mean, is below this; rounding in fp32 is about 1e-6."""


@dataclass(frozen=True)
class FeatureSpace:
    """The standardised features of N images, for searching.

    Attributes
    ----------
    mean, scale : numpy.ndarray
        float32 ``(D,)``; the scale of a constant feature is infinite, so that its rounding errors do not count.
    unit : numpy.ndarray
        float32 ``(N, D)``: the standardised features, scaled to length one.
    """

    mean: F32
    scale: F32
    unit: F32

    @classmethod
    def of(cls, features: F32) -> FeatureSpace:
        """Standardise features ``(N, D)``, with N at least 1."""
        mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        known = np.where(scale > _LEAST_SPREAD * np.abs(mean), scale, np.inf).astype(np.float32)
        return cls(mean.astype(np.float32), known, _unit((features - mean.astype(np.float32)) / known))

    @property
    def tells(self) -> bool:
        """Whether any feature varies; those of a collapsed network do not."""
        return bool(np.isfinite(self.scale).any())

    def likeness(self, features: F32) -> F32:
        """Return the cosine similarity ``(M, N)`` of M images, by features ``(M, D)``, to each of the N images."""
        result: F32 = _unit((features - self.mean) / self.scale) @ self.unit.T
        return result


def _unit(values: F32) -> F32:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(norms > 0, norms, 1), np.float32)
