"""Explanations of an evaluation: maps of the gallery's images, and checks of the maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainmri_core.arrays import F32, I64
from brainmri_core.evaluation.explanation_checks import (
    localisation_scores,
    randomisation_check,
    shrink_mask,
)
from brainmri_core.evaluation.galleries import KINDS
from brainmri_core.evaluation.gradcam import Maps, maps_of_rows
from brainmri_core.evaluation.metrics_schema import (
    Explanations,
    Localisation,
    MapScores,
    NoLocalisation,
    Randomisation,
)
from brainmri_core.evaluation.tested_data import TestedData
from brainmri_core.evaluation.tested_model import TestedModel

CHECKED_IMAGES = 16
SHOWN_CHECKS = 4
MAX_MASKED = 256


@dataclass(frozen=True)
class Explained:
    """Maps and the results of their checks.

    Attributes
    ----------
    rows : numpy.ndarray
        int64 ``(M,)``: pack rows of the maps, each for its predicted class.
    maps : Maps
        The maps.
    scores : Explanations
        Results of the checks.
    check_rows, check_maps
        Some images of the randomisation check, and their maps by stage.
    """

    rows: I64
    maps: Maps
    scores: Explanations
    check_rows: I64
    check_maps: dict[str, F32]


def explain(
    tested_model: TestedModel, galleries: pd.DataFrame, test: pd.DataFrame, tested_data: TestedData, seed: int
) -> Explained:
    """Compute the maps of the gallery's images and check them.

    Parameters
    ----------
    tested_model : TestedModel
        The model and its images.
    galleries : pandas.DataFrame
        From `select_galleries`.
    test : pandas.DataFrame
        Test rows of the prediction table.
    tested_data : TestedData
        With tumour masks where they are known.
    seed : int
        Seed of the random parameters.
    """
    called = dict(zip(test["row"].tolist(), test["predicted_index"].tolist(), strict=True))
    rows = np.unique(galleries["row"].to_numpy(np.int64))
    maps = _maps(tested_model, rows, np.asarray([called[row] for row in rows.tolist()], np.int64))
    sure = galleries[galleries["gallery"] == KINDS[0]].sort_values(["rank", "class"], kind="stable")
    sure = sure if len(sure) else galleries
    checked = pd.unique(sure["row"])[:CHECKED_IMAGES].astype(np.int64)
    randomisation, check_maps = randomisation_check(
        tested_model.model,
        tested_model.meta.model_name,
        tested_model.pixels,
        checked,
        np.asarray([called[row] for row in checked.tolist()], np.int64),
        tested_model.preprocessing,
        device=tested_model.device,
        batch_size=tested_model.batch_size,
        seed=seed,
    )
    scores = Explanations(
        methods=["Grad-CAM", "Grad-CAM++"],
        grid=maps.grid,
        randomisation=Randomisation(**randomisation),
        localisation=_localisation(tested_model, test, tested_data),
    )
    return Explained(
        rows,
        maps,
        scores,
        checked[:SHOWN_CHECKS],
        {name: part[:SHOWN_CHECKS] for name, part in check_maps.items()},
    )


def _maps(tested_model: TestedModel, rows: I64, targets: I64) -> Maps:
    return maps_of_rows(
        tested_model.model,
        tested_model.meta.model_name,
        tested_model.pixels,
        rows,
        targets,
        tested_model.preprocessing,
        device=tested_model.device,
        batch_size=tested_model.batch_size,
    )


def _localisation(
    tested_model: TestedModel, test: pd.DataFrame, tested_data: TestedData
) -> Localisation | NoLocalisation:
    """Score the maps of the true class against the known tumour masks, on up to `MAX_MASKED` test images."""
    known = test[test["path"].map(tested_data.has_mask).astype(bool)]
    if known.empty:
        return NoLocalisation(reason="no test image has a known tumour mask")
    step = -(-len(known) // MAX_MASKED)
    chosen = known.iloc[::step]
    masks = np.stack(
        [
            shrink_mask(tested_data.mask(path), tested_model.preprocessing.image_size)
            for path in chosen["path"]
        ]
    )
    visible = masks.any(axis=(1, 2))
    if not visible.any():
        return NoLocalisation(reason="no known tumour mask has a pixel in the model's input")
    chosen, masks = chosen[visible], masks[visible]
    labels = chosen["class_index"].to_numpy(np.int64)
    maps = _maps(tested_model, chosen["row"].to_numpy(np.int64), labels)
    return Localisation(
        images=len(chosen),
        explained="the true class",
        gradcam=MapScores(**localisation_scores(maps.gradcam, masks)),
        gradcam_plus_plus=MapScores(**localisation_scores(maps.gradcam_plus_plus, masks)),
        other_image=MapScores(**localisation_scores(maps.gradcam[_others(labels)], masks)),
    )


def _others(labels: I64) -> I64:
    """Return for each image the position of another image of its class, half of the class away; itself if it is alone."""
    other = np.arange(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        other[members] = np.roll(members, len(members) // 2)
    return other
