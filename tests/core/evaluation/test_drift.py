from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmri_core.evaluation.drift import DriftReport, measure_drift
from brainmri_core.evaluation.shift import FEATURE_NAMES, KINDS, ImageSet

EDGES = [FEATURE_NAMES.index(name) for name in ("edge_strength", "sharpness", "noise")]


def images(patients: int, seed: int, *, blur: float = 0.0, each: int = 3) -> ImageSet:
    """Features and embeddings that mostly say which patient an image is of."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(patients), each)

    def drawn(width: int) -> np.ndarray:
        found: np.ndarray = rng.normal(0, 1, (patients, width))[number] + rng.normal(
            0, 0.3, (len(number), width)
        )
        return found

    features = 50 + 5 * drawn(len(FEATURE_NAMES))
    features[:, EDGES] -= 5 * blur
    return ImageSet(features, tuple(f"{seed}.{one}" for one in number), drawn(6).astype(np.float32))


def alone(found: ImageSet) -> ImageSet:
    """The same images, of which nobody knows the patient."""
    return ImageSet(found.features, tuple(map(str, range(len(found)))), found.embeddings)


@pytest.mark.parametrize("known", [True, False], ids=["patients known", "patients not known"])
@pytest.mark.parametrize("patients", [1, 5, 40])
def test_images_like_the_validation_images_are_flagged_as_seldom_as_the_setting_says(
    patients: int, known: bool
) -> None:
    """60 batches at a setting of 20%: of correct ones, 99.9% flag no more than 22."""
    flagged = 0
    for seed in range(60):
        batch = images(patients, 100 + seed)
        batch = batch if known else alone(batch)
        found = measure_drift(images(60, 1000 + seed), batch, false_alarms=0.2, seed=seed)
        flagged += any(item.exceeded for item in found)
    assert flagged <= stats.binom.ppf(0.999, 60, 0.2)


def test_drift_is_found_in_the_kind_it_is_in() -> None:
    found = measure_drift(images(60, 0), alone(images(20, 1, blur=2.0)), false_alarms=0.01, seed=0)
    assert [item.kind for item in found if item.exceeded] == ["edges"]
    report = DriftReport(measures=found)
    assert report.sentence().startswith("The images are unlike the model's validation images in edges:")


def test_a_few_images_from_elsewhere_are_no_drift_of_a_set_without_variety() -> None:
    """All validation images are of one size: any other size would exceed a threshold of nothing."""
    reference, batch = images(60, 0), images(200, 1)
    for found, odd in ((reference, 0), (batch, 6)):
        found.features[:, :3] = [512, 512, 1]
        found.features[:odd, :3] = [256, 512, 0.5]
    few = measure_drift(reference, batch, false_alarms=0.01, seed=0)
    assert not few[0].exceeded
    batch.features[:200, :3] = [256, 512, 0.5]
    assert measure_drift(reference, batch, false_alarms=0.01, seed=0)[0].exceeded


def test_what_cannot_be_measured_is_said() -> None:
    reference = images(60, 0)
    bare = ImageSet(reference.features, reference.groups)
    report = DriftReport(measures=measure_drift(bare, images(20, 1), false_alarms=0.01, seed=0))
    assert report.unmeasured == {"embedding": "there are no embeddings of one of the sets"}
    assert report.sentence() == (
        "The images look like the model's validation images. Not measured in embedding: there are no embeddings of one of "
        "the sets."
    )
    few = DriftReport(measures=measure_drift(images(9, 0), images(20, 1), false_alarms=0.01, seed=0))
    assert not few.measured
    assert few.sentence() == (
        "Not measured in size, intensity, edges, embedding: the validation images are of 9 patients or groups, fewer than "
        "10."
    )
    one = DriftReport(measures=measure_drift(reference, images(1, 1, each=5), false_alarms=0.01, seed=0))
    assert set(one.unmeasured.values()) == {
        "5 images are too few to tell drift from chance by the 60 patients or groups of the validation images"
    }
    gone = DriftReport(reason="the images are gone")
    assert list(gone.unmeasured) == list(KINDS)
    assert gone.sentence() == "Not measured in size, intensity, edges, embedding: the images are gone."


def test_the_measure_of_one_batch_does_not_depend_on_what_else_was_measured() -> None:
    first = measure_drift(images(60, 0), images(20, 1), false_alarms=0.01, seed=0)
    assert first == measure_drift(images(60, 0), images(20, 1), false_alarms=0.01, seed=0)
    assert DriftReport.model_validate_json(DriftReport(measures=first).model_dump_json()).measures == first
