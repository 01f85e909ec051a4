"""1-nearest-neighbour look-up on 64x64 thumbnails, a baseline that only memorises the training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainmri_core.arrays import F32, I64, U8, Integers

_BLOCK = 1024


def unit_vectors(thumbs: U8) -> F32:
    """Return the thumbnails as mean-removed vectors of length one; a constant image becomes zeros.

    Parameters
    ----------
    thumbs : numpy.ndarray
        uint8 ``(N, H, W)``.

    Returns
    -------
    numpy.ndarray
        float32 ``(N, H * W)``; the dot product of two of them is their normalised cross-correlation.
    """
    vectors = np.asarray(thumbs, np.float32).reshape(len(thumbs), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    vectors /= np.where(norms > 1e-3, norms, np.inf)
    return vectors


def nearest_neighbours(
    train_thumbs: U8,
    test_thumbs: U8,
    *,
    train_rows: Sequence[int] | Integers | None = None,
    test_rows: Sequence[int] | Integers | None = None,
) -> tuple[I64, F32]:
    """Find the most similar training image of each test image, by exhaustive search in blocks.

    Parameters
    ----------
    train_thumbs, test_thumbs : numpy.ndarray
        uint8 ``(N, H, W)`` and ``(M, H, W)``; may be memory maps, and may be the same array with different rows.
    train_rows, test_rows : sequence of int or None
        Rows to use; all by default.

    Returns
    -------
    index : numpy.ndarray
        int64, one per test row: position in `train_rows` (or in `train_thumbs`) of the most similar image; the first of
        equally similar ones.
    similarity : numpy.ndarray
        float32, its normalised cross-correlation, -1 to 1.

    Raises
    ------
    ValueError
        If there is no training image.
    """
    trained = np.arange(len(train_thumbs)) if train_rows is None else np.asarray(train_rows, np.int64)
    tested = np.arange(len(test_thumbs)) if test_rows is None else np.asarray(test_rows, np.int64)
    if not len(trained):
        raise ValueError("a nearest-neighbour look-up needs at least one training image")
    index = np.zeros(len(tested), np.int64)
    similarity = np.full(len(tested), -2.0, np.float32)
    for low in range(0, len(tested), _BLOCK):
        images = test_thumbs[tested[low : low + _BLOCK]]
        queries = unit_vectors(images)
        part = slice(low, low + len(queries))
        for start in range(0, len(trained), _BLOCK):
            scores = queries @ unit_vectors(train_thumbs[trained[start : start + _BLOCK]]).T
            best = scores.argmax(axis=1)
            value = scores[np.arange(len(queries)), best]
            better = value > similarity[part]
            index[part] = np.where(better, best + start, index[part])
            similarity[part] = np.maximum(similarity[part], value)
    return index, similarity


def nearest_neighbour_baseline(train_thumbs: U8, train_labels: I64, test_thumbs: U8) -> I64:
    """Give each test image the class of the most similar training image.

    Parameters
    ----------
    train_thumbs, test_thumbs : numpy.ndarray
        uint8 ``(N, H, W)`` and ``(M, H, W)`` thumbnails.
    train_labels : numpy.ndarray
        int64 ``(N,)`` class indices.

    Returns
    -------
    numpy.ndarray
        int64 ``(M,)`` predicted class indices.
    """
    index, _ = nearest_neighbours(train_thumbs, test_thumbs)
    return np.asarray(train_labels, np.int64)[index]
