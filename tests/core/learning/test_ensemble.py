from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brainmri_core.errors import ModelError
from brainmri_core.evaluation.explanation_checks import randomisation_check, randomised
from brainmri_core.evaluation.gradcam import activation_maps
from brainmri_core.export import export_checkpoint
from brainmri_core.learning.checkpoint import (
    CheckpointMeta,
    EnsembleRecord,
    MemberRecord,
    Preprocessing,
    load_model,
    save_checkpoint,
)
from brainmri_core.learning.ensemble import Ensemble, Member, networks_of
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import build_model, head
from tests.core.learning.models_case import META
from tests.counts import long

CPU = torch.device("cpu")
NAME = "resnet18"
PIXELS = Preprocessing(
    pack_size=64, image_size=64, channels=1, colour=False, fit="letterbox", mean=[0.0], std=[1.0]
)


def networks(count: int = 3, name: str = NAME, depths: int = 1) -> list[torch.nn.Module]:
    torch.manual_seed(1)
    found = []
    for number in range(count):
        model = build_model(name, num_classes=3, in_channels=1, image_size=64, depths=depths)
        torch.nn.init.normal_(head(model).weight, std=0.3 * (number + 1))
        found.append(model.eval())
    return found


def joined(found: list[torch.nn.Module]) -> Ensemble:
    return Ensemble(
        [
            Member(network, [0.1 * number], [0.2 + number], 0.5 + number)
            for number, network in enumerate(found)
        ]
    ).eval()


def record(count: int = 3, name: str = NAME, depths: int = 1) -> CheckpointMeta:
    member = {"checkpoint_pointer": "p", "checkpoint_sha256": "0" * 64, "temperature": 1.0}
    members = [MemberRecord(fold=fold, **member) for fold in range(count)]
    ensemble = EnsembleRecord(members=members, parameters=1, weights_bytes=4, forward_passes=count)
    changes = {"model_name": name, "preprocessing": PIXELS, "depths": depths, "ensemble": ensemble}
    return META.model_copy(update=changes)


def test_an_ensemble_answers_by_the_mean_probability_of_members_that_see_images_as_they_were_trained(
    tmp_path: Path,
) -> None:
    found = networks()
    pixels = torch.rand(5, 1, 64, 64)
    shares = [
        (network((pixels - 0.1 * number) / (0.2 + number)) / (0.5 + number)).softmax(1)
        for number, network in enumerate(found)
    ]
    assert max((one - other).abs().max() for one in shares for other in shares) > 0.05, "they do differ"
    ensemble = joined(found)
    logits = ensemble(pixels)
    torch.testing.assert_close(logits.softmax(1), sum(shares) / 3, rtol=1e-4, atol=1e-5)

    save_checkpoint(tmp_path / "best.pth", ensemble.state_dict(), record())
    again, meta = load_model(tmp_path / "best.pth", CPU)
    assert meta == record()
    packed = (pixels[:, 0].numpy() * 255).astype(np.uint8)
    with torch.inference_mode():
        wanted = ensemble(torch.from_numpy(packed)[:, None].float().div(255))
    rows = np.arange(5)
    got = predict(again, packed, rows, meta.preprocessing, device=CPU, batch_size=5, embeddings=True)
    torch.testing.assert_close(torch.from_numpy(got.logits), wanted, rtol=1e-4, atol=1e-4)
    assert got.embeddings is not None and got.embeddings.shape == (5, head(found[0]).in_features)


def test_the_maps_of_an_ensemble_are_the_mean_of_its_members_maps() -> None:
    found = networks()
    ensemble = joined(found)
    pixels, targets = torch.rand(2, 1, 64, 64), torch.tensor([0, 2])
    together = activation_maps(ensemble, NAME, pixels, targets)
    parts = [
        activation_maps(member.network, NAME, member.seen(pixels), targets).gradcam
        for member in ensemble.members
    ]
    mean = np.mean(parts, axis=0)
    assert together.grid == 2
    assert np.allclose(together.gradcam, mean / mean.max(axis=(1, 2), keepdims=True), atol=1e-6)
    assert together.gradcam_plus_plus.max(axis=(1, 2)) == pytest.approx(1)


@pytest.mark.parametrize("stage", ["head", "last block", "all"])
def test_the_randomisation_check_reaches_every_member(stage: str) -> None:
    ensemble = joined(networks())
    fresh = randomised(ensemble, NAME, stage, 0)
    for old, new in zip(networks_of(ensemble), networks_of(fresh), strict=True):
        assert not torch.equal(head(old).weight, head(new).weight)
        first = next(old.parameters()), next(new.parameters())
        assert torch.equal(*first) is (stage != "all")


@pytest.mark.full
@pytest.mark.training
@pytest.mark.parametrize(
    "name", ["timm/tf_efficientnet_lite0", *long("densenet121", "timm/vit_tiny_patch16_224")]
)
def test_probes_and_other_encoders_make_an_ensemble_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    depths = 1 if name == "densenet121" else 2
    ensemble = joined(networks(2, name, depths))
    save_checkpoint(tmp_path / "best.pth", ensemble.state_dict(), record(2, name, depths))
    again, meta = load_model(tmp_path / "best.pth", CPU)
    packed = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    rows, targets = np.arange(4), np.zeros(4, np.int64)
    scores, maps = randomisation_check(
        again, name, packed, rows, targets, meta.preprocessing, device=CPU, batch_size=4, seed=1
    )
    assert scores["images"] == 4 and maps["own"].shape == (4, 64, 64)
    export_checkpoint(tmp_path / "best.pth", tmp_path / "best.safetensors", "safetensors")
    other, _ = load_model(tmp_path / "best.safetensors", CPU)
    pixels = torch.rand(2, 1, 64, 64)
    assert torch.equal(again(pixels), other(pixels))
    program = export_checkpoint(tmp_path / "best.pth", tmp_path / "best.pt2", "torch_export")
    exported = torch.export.load(program).module()(pixels)
    torch.testing.assert_close(exported, other(pixels), rtol=1e-3, atol=1e-3)
    onnx = str(export_checkpoint(tmp_path / "best.pth", tmp_path / "best.onnx", "onnx"))
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), other(pixels), rtol=1e-3, atol=1e-3)


def test_a_checkpoint_with_another_number_of_members_than_its_record_says_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pth", joined(networks(2)).state_dict(), record(3))
    with pytest.raises(ModelError, match=r"do not fit resnet18 \(ensemble of 3\) with 3 classes"):
        load_model(tmp_path / "best.pth", CPU)
