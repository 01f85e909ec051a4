from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from brainmri_core.evaluation.outliers import FLAGGED_SHARE, MIN_IMAGES, OutlierModel, fit_outliers


def clouds(n: int, seed: int, width: int = 6) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two classes of correlated embeddings, two images a group."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) // 2 % 2
    mixing = np.random.default_rng(99).normal(0, 1, (width, width))
    embeddings = rng.normal(0, 1, (n, width)) @ mixing + 8 * labels[:, None]
    return embeddings.astype(np.float32), labels.astype(np.int64), [f"g{i // 2}" for i in range(n)]


def fitted(n: int = 400, seed: int = 0) -> OutlierModel:
    model = fit_outliers(*clouds(n, seed), seed=1)
    assert model is not None
    return model


def test_the_score_is_the_mahalanobis_distance_to_the_nearest_class() -> None:
    embeddings, labels, _ = clouds(400, 0)
    means = np.stack([embeddings[labels == k].mean(axis=0) for k in (0, 1)])
    fit = LedoitWolf(assume_centered=True).fit(embeddings.astype(np.float64) - means[labels])
    inverse = np.linalg.inv(fit.covariance_)
    strangers = np.random.default_rng(5).normal(0, 5, (10, 6)).astype(np.float32)
    expected = [min(mahalanobis(x, m, inverse) for m in means) / np.sqrt(6) for x in strangers]
    assert fitted().score(strangers) == pytest.approx(expected, rel=1e-3)


def test_the_threshold_flags_the_share_it_says_on_unseen_images_of_the_same_kind() -> None:
    model = fitted(2000)
    unseen, _, _ = clouds(4000, seed=8)
    assert (model.score(unseen) > model.threshold).mean() == pytest.approx(FLAGGED_SHARE, abs=0.008)


def test_strangers_are_flagged() -> None:
    model = fitted()
    strangers = np.random.default_rng(1).normal(0, 60, (50, 6)).astype(np.float32)
    assert (model.score(strangers) > model.threshold).all()


def test_half_way_between_two_classes_is_not_near_either() -> None:
    model = fitted()
    embeddings, labels, _ = clouds(400, 0)
    middle = (embeddings[labels == 0].mean(axis=0) + embeddings[labels == 1].mean(axis=0)) / 2
    at_home = model.score(embeddings)
    assert model.score(middle[None])[0] > np.median(at_home)


def test_each_validation_image_is_judged_without_its_group() -> None:
    """A group of identical far images would hide behind itself if it took part in its own fit."""
    embeddings, labels, groups = clouds(120, 2)
    embeddings[:6], labels[:6] = 500.0, 0
    groups[:6] = ["far"] * 6
    model = fit_outliers(embeddings, labels, groups, seed=1)
    assert model is not None
    own = model.score(embeddings[:1])[0]
    assert model.threshold > 3 * own


def test_constant_directions_make_no_outliers() -> None:
    embeddings, labels, groups = clouds(200, 3)
    embeddings = np.concatenate([embeddings, np.zeros((200, 40), np.float32)], axis=1)
    model = fit_outliers(embeddings, labels, groups, seed=1)
    assert model is not None
    scores = model.score(embeddings)
    assert np.isfinite(scores).all()
    jitter = embeddings.copy()
    jitter[:, 6:] += 1e-6
    assert model.score(jitter) == pytest.approx(scores, rel=1e-2)


def test_too_few_images_or_groups_give_no_score() -> None:
    embeddings, labels, groups = clouds(MIN_IMAGES - 1, 0)
    assert fit_outliers(embeddings, labels, groups, seed=1) is None
    embeddings, labels, _ = clouds(60, 0)
    assert fit_outliers(embeddings, labels, ["one"] * 60, seed=1) is None


def test_the_same_seed_gives_the_same_threshold() -> None:
    assert fitted().threshold == fitted().threshold
