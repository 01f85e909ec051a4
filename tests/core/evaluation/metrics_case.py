"""Predictions made up so that their scores are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from brainmri_core.evaluation.prediction_table import prediction_table

CLASSES = ["glioma", "notumor", "pituitary"]


def votes(called: list[int], k: int = 3, sure: float = 0.8) -> np.ndarray:
    """Probabilities that give `sure` to the predicted class and the rest in equal parts to the others."""
    shares = np.full((len(called), k), (1 - sure) / (k - 1))
    shares[np.arange(len(called)), called] = sure
    return shares


def made_up(n: int = 240, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of a model that is right about two times out of three."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 1.2, (n, k)).round(1)
    logits[np.arange(n), labels] += 1.5
    return labels.astype(np.int64), logits.astype(np.float32)


def table_of(labels: np.ndarray, logits: np.ndarray, classes: list[str], split: str = "test") -> pd.DataFrame:
    n = len(labels)
    samples = pd.DataFrame(
        {
            "row": np.arange(n),
            "path": [f"{split}/{i:03}.png" for i in range(n)],
            "group": [f"{split}{i // 2}" for i in range(n)],
            "split": split,
            "label": np.asarray(classes, object)[labels],
            "class_index": labels,
        }
    )
    return prediction_table(samples, logits.astype(np.float32), classes, np.zeros(n))


def nulls(value: Any, path: tuple[str, ...] = (), reasons: tuple[tuple[int, Any], ...] = ()) -> Iterator[str]:
    """Yield the dotted names of nulls for which neither their mapping nor one around it gives a reason."""
    if isinstance(value, dict):
        inner = (*reasons, (len(path), value.get("reasons", {})))
        for key, item in value.items():
            if item is None and "reason" in value:
                continue
            yield from nulls(item, (*path, key), inner)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from nulls(item, (*path, str(number)), reasons)
    elif value is None:
        known = any(
            ".".join(path[depth:end]) in found
            for depth, found in reasons
            for end in range(depth + 1, len(path) + 1)
        )
        if not known:
            yield ".".join(path)
