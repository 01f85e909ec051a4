from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainmri_core import train as train_module
from brainmri_core.classifier.neighbours import find_neighbours
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ConfigError, ModelError
from brainmri_core.evaluate import evaluate
from brainmri_core.evaluation.metrics_schema import Explanations, read_metrics
from brainmri_core.export import export_checkpoint
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_checkpoint, load_model
from brainmri_core.learning.encoder import read_features
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import head
from brainmri_core.learning.pooled import PooledClassifier
from brainmri_core.learning.probe import STRENGTHS, fit_probe
from brainmri_core.learning.state import State
from brainmri_core.learning.team import Team
from brainmri_core.predict import Classifier
from brainmri_core.project.job import Job
from brainmri_core.project.logs import Record
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.system.checksums import sha256_file
from brainmri_core.train import train
from tests.core.evaluation_case import Case, evaluate_config
from tests.core.learning.training_pack import config, make_pack
from tests.counts import rest

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def probe_config(method: str = "probe", name: str = "mobilenet_v3_small", **blocks: Any) -> TrainConfig:
    """Return a probe of a frozen random network, in fp32."""
    blocks = {"model": {"name": name}, "loop": {"precision": "fp32", "epochs": 1}, **blocks}
    return config(**blocks).model_copy(update={"method": method})


def noisy_features(width: int = 12, classes: int = 3, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes whose features differ in place and scale, one of them constant."""
    rng, rows = np.random.default_rng(5), 400
    labels = rng.choice(classes, rows, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    values = rng.normal(size=(rows, width)) + apart * rng.normal(size=(classes, width))[labels]
    values = values * rng.uniform(0.01, 30, width) + rng.normal(size=width) * 10
    values[:, 3] = 7
    return values.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize(("classes", "balanced"), [(3, True), *rest((3, False), (2, True), (5, False))])
def test_its_logits_are_scikit_learns_decisions_on_standardised_features(
    classes: int, balanced: bool
) -> None:
    features, labels = noisy_features(classes=classes)
    seen, unseen = np.arange(0, 300), np.arange(300, 400)
    found = fit_probe(features, labels, seen, unseen, classes=classes, balanced=balanced)
    theirs = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=found.strength, class_weight="balanced" if balanced else None, tol=1e-8),
    ).fit(features[seen].astype(np.float64), labels[seen])
    decisions = theirs.decision_function(features)
    if classes == 2:
        decisions = np.stack([-decisions, decisions], axis=1) / 2
    # softmax does not see what all classes of an image have in common
    ours, wanted = (
        values - values.mean(axis=1, keepdims=True) for values in (found.logits(features), decisions)
    )
    np.testing.assert_allclose(ours, wanted, atol=2e-3 * np.abs(wanted).max())


def test_the_penalty_is_chosen_by_the_validation_rows() -> None:
    features, labels = noisy_features(width=100, apart=0.2)
    seen, unseen = np.arange(0, 100), np.arange(100, 400)
    weak = fit_probe(features, labels, seen, seen, classes=3, balanced=True)
    found = fit_probe(features, labels, seen, unseen, classes=3, balanced=True)
    assert found.strength < weak.strength == max(STRENGTHS)
    overfitted = log_softmax(weak.logits(features[unseen]), axis=1)
    assert found.val_loss < -overfitted[np.arange(300), labels[unseen]].mean()


@pytest.mark.parametrize(
    ("name", "depths"),
    [("resnet18", 4), *rest(("mobilenet_v3_small", 5), ("densenet121", 2), ("convnext_tiny", 1))],
)
def test_the_checkpoint_of_a_probe_gives_the_logits_of_its_features(
    job: Job, passes: list[int], name: str, depths: int
) -> None:
    pack = make_pack(job, size=64)
    made = train(probe_config(name=name, probe={"depths": depths}), pack, job)
    model, meta = load_model(job.layout.absolute(made.checkpoint), CPU)
    assert meta.depths == depths and isinstance(model, PooledClassifier) == (depths > 1)
    assert (made.best_epoch, made.epochs_run, len(pd.read_parquet(job.layout.absolute(made.history)))) == (
        1,
        1,
        1,
    )
    assert sum(passes) == pack.n_images

    found = predict(
        model, open_pack(job.layout, pack), np.arange(pack.n_images), meta.preprocessing,
        device=CPU, batch_size=8, tta=True,
    )  # fmt: skip
    (folder,) = (job.layout.root / "outputs" / "features" / job.dataset).iterdir()
    features = read_features(folder)
    assert features.shape == (pack.n_images, head(model).in_features)
    sides = train_module._sides(probe_config(), pack, job)
    fitted = fit_probe(features, sides.labels, sides.train, sides.val, classes=4, balanced=True)
    assert fitted.val_macro_f1 == made.val_macro_f1
    np.testing.assert_allclose(found.logits, fitted.logits(features), rtol=1e-3, atol=1e-3)


def test_features_are_computed_once_for_all_folds_and_trainings(job: Job, passes: list[int]) -> None:
    pack = make_pack(job, per_class=8)
    first = train(probe_config(), pack, job)
    assert sum(passes) == pack.n_images
    again = train(probe_config(), pack, replace(job, run_id="r2"))
    assert again.content_hash == first.content_hash, "the same probe, to the bit"
    fold = pack.model_copy(update={"content_hash": "1" * 64})
    train(
        probe_config(optim={"class_weights": False}, data={"val_frac": 0.4}), fold, replace(job, run_id="r3")
    )
    assert sum(passes) == pack.n_images, "no image went through the network again"


@pytest.mark.parametrize(
    "blocks",
    [
        {"data": {"seed": 7}},  # other random weights
        *rest({"probe": {"depths": 3}}, {"data": {"image_size": 24}}, {"loop": {"precision": "bf16"}}),
    ],
)
def test_another_encoder_computes_features_of_its_own(
    job: Job, passes: list[int], blocks: dict[str, Any]
) -> None:
    pack = make_pack(job, per_class=8)
    for number, changed in enumerate(({}, blocks)):
        train(probe_config(**changed), pack, replace(job, run_id=f"r{number}"))
    assert sum(passes) == 2 * pack.n_images


@pytest.mark.full
def test_another_pack_has_features_of_its_own_and_damaged_ones_are_computed_again(
    job: Job, passes: list[int], records: list[Record]
) -> None:
    pack = make_pack(job, per_class=8)
    made = train(probe_config(), pack, job)
    (folder,) = (job.layout.root / "outputs" / "features" / job.dataset).iterdir()
    with (folder / "features.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"damage")
    again = train(probe_config(), pack, replace(job, run_id="r2"))
    assert sum(passes) == 2 * pack.n_images and again.content_hash == made.content_hash
    assert "kept features are damaged; they are computed again" in [item["event"] for item in records]

    path = job.layout.absolute(pack.pack)
    np.save(path, 255 - np.load(path))
    other = pack.model_copy(update={"pack_sha256": sha256_file(path)})
    train(probe_config(), other, replace(job, run_id="r3"))
    assert sum(passes) == 3 * pack.n_images


@pytest.mark.full
@pytest.mark.parametrize("batch_norm", ["auto", "frozen", "batch"])
def test_fine_tuning_starts_from_the_probe_with_the_statistics_it_was_fitted_on(
    job: Job, records: list[Record], batch_norm: str
) -> None:
    pack = make_pack(job, per_class=8)
    probed = train(probe_config(), pack, job)
    slow = {"optim": {"lr": 1e-9, "ema_decay": 0, "batch_norm": batch_norm, "label_smoothing": 0}}
    ended: list[State] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "judge_snapshots", lambda loop, state, log: ended.append(state))
        train(probe_config("probe_then_finetune", **slow), pack, replace(job, run_id="r2"))
    assert [record["event"] for record in records].count("epoch") == 1
    before = load_checkpoint(job.layout.absolute(probed.checkpoint))[1]
    after = ended[0].model.state_dict()
    assert before.keys() == after.keys()
    np.testing.assert_allclose(before["head.weight"], after["head.weight"], atol=1e-4)
    kept = [torch.equal(before[name], after[name]) for name in before if "running_mean" in name]
    assert kept == [batch_norm != "batch"] * len(kept) and kept


@pytest.mark.full
def test_the_probe_is_kept_where_fine_tuning_makes_it_worse(job: Job, records: list[Record]) -> None:
    pack = make_pack(job, per_class=8)
    probed = train(probe_config(), pack, job)
    wild = {"optim": {"lr": 0.5, "ema_decay": 0}}
    tuned = train(probe_config("probe_then_finetune", **wild), pack, replace(job, run_id="r2"))
    assert tuned.best_epoch == 0 and tuned.epochs_run == 1
    (said,) = [item for item in records if "the probe it started from" in item["event"]]
    assert (said["level"], said["learning_rate"]) == ("WARNING", 0.5)
    before, after = (load_checkpoint(job.layout.absolute(item.checkpoint))[1] for item in (probed, tuned))
    np.testing.assert_allclose(before["head.weight"], after["head.weight"], atol=1e-6)


@pytest.mark.full
def test_the_weights_of_a_probe_start_an_ordinary_training(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    made = train(probe_config(), pack, job)
    file = job.layout.absolute(made.checkpoint)
    options = config(model={"weights_file": str(file)}, loop={"epochs": 1}, optim={"lr": 1e-9})
    tuned = train(options, pack, replace(job, run_id="r2"))
    weights = [load_checkpoint(job.layout.absolute(item.checkpoint))[1] for item in (made, tuned)]
    np.testing.assert_allclose(
        weights[0]["encoder.features.12.0.weight"], weights[1]["features.12.0.weight"], atol=1e-6
    )


@pytest.mark.full
def test_a_probe_is_exported_like_any_checkpoint(job: Job, tmp_path: Path) -> None:
    made = train(probe_config(), make_pack(job, per_class=8, size=64), job)
    weights = job.layout.absolute(made.checkpoint)
    model, meta = load_model(weights, CPU)
    pixels = torch.rand(3, 1, 64, 64)
    with torch.inference_mode():
        wanted = model((pixels - meta.preprocessing.mean[0]) / meta.preprocessing.std[0])
        program = torch.export.load(export_checkpoint(weights, tmp_path / "model.pt2", "torch_export"))
        torch.testing.assert_close(program.module()(pixels), wanted, rtol=1e-3, atol=1e-3)
        again, _ = load_model(export_checkpoint(weights, tmp_path / "m.safetensors", "safetensors"), CPU)
        torch.testing.assert_close(again(pixels), model(pixels))
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(export_checkpoint(weights, tmp_path / "m.onnx", "onnx"))
        (found,) = session.run(["logits"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-3)


def test_a_probe_is_evaluated_explained_and_used_like_any_checkpoint(case: Case, passes: list[int]) -> None:
    job = replace(case.job, run_id="probe")
    made = write_pointer(job.layout, train(probe_config(), case.pack, job))
    measured = evaluate(evaluate_config(), made, case.pack, job)
    metrics = read_metrics(job.layout.absolute(measured.metrics))
    assert metrics.calibration.temperature is not None
    assert isinstance(metrics.explanations, Explanations), "Grad-CAM has maps"
    image = next(job.layout.absolute(case.fetched.dataset_root).rglob("*.png"))
    classifier = Classifier.load(job.layout.absolute(measured.folder), env=job.env)
    (found,) = classifier.predict([str(image)])
    assert found.error is None and set(found.probabilities) == set(case.pack.classes)
    computed = len(passes)
    known = find_neighbours(classifier.weights, classifier.inference)
    assert known is not None and known.features is not None
    assert len(passes) == computed, "the nearest images are told by the features that the probe was fitted on"

    (folder,) = (job.layout.root / "outputs/features" / job.dataset).iterdir()
    values = StandardScaler().fit_transform(read_features(folder)[known.rows])
    cosine = cosine_similarity(values[5:6], values)[0]
    near = known.nearest(np.asarray(known.pixels[known.rows[5]]), 4)
    assert near[0].path == known.paths[5] and near[0].is_copy
    others = [item for item in near if not item.is_copy]
    told = [cosine[known.paths.index(item.path)] for item in others]
    assert [item.likeness for item in others] == pytest.approx(told, abs=0.01) and told == sorted(told)[::-1]
    assert told[-1] >= np.sort(cosine)[-4] - 0.01, "no other is nearer"


def test_frozen_random_features_are_warned_of(job: Job, records: list[Record]) -> None:
    train(probe_config(), make_pack(job, per_class=8), job)
    assert any(
        str(item["event"]).startswith("frozen random features are meant for tests") for item in records
    )


def test_what_a_probe_cannot_do_is_refused(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    with pytest.raises(
        ModelError, match=r"mobilenet_v3_small has 5 depths .* and 8 are asked for; lower train.probe.depths"
    ):
        train(probe_config(probe={"depths": 8}), pack, job)
    with pytest.raises(ConfigError, match=r"train.method probe .* train.distributed.nproc is 2; set it to 1"):
        train(probe_config(distributed={"nproc": 2}), pack, job, Team(0, 2))
