from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from brainmri_core.errors import ModelError
from brainmri_core.learning.models import build_model, head, with_depths
from brainmri_core.learning.pooled import PooledClassifier, depth_layers
from tests.counts import rest

DEPTHS = {
    "resnet18": ["relu", "layer1", "layer2", "layer3"],
    "timm/tf_efficientnet_lite0": ["blocks.0", "blocks.1", "blocks.2", "blocks.4"],
    "timm/vit_tiny_patch16_224": ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
    "convnext_tiny": ["features.1", "features.3", "features.5"],
    "densenet121": ["features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3"],
    "efficientnet_b0": ["features.1", "features.2", "features.3", "features.5"],
    "regnet_y_400mf": ["block1", "block2", "block3"],
    "timm/swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2"],
    "timm/mobilenetv4_conv_small": ["bn1", "blocks.0", "blocks.1", "blocks.2"],
    "timm/convnext_atto": ["stages.0", "stages.1", "stages.2"],
}
DEPTHS["regnet_y_400mf"] = [f"trunk_output.{name}" for name in DEPTHS["regnet_y_400mf"]]
CHEAP = 3


@pytest.mark.parametrize("name", [*list(DEPTHS)[:CHEAP], *rest(*list(DEPTHS)[CHEAP:])])
def test_features_of_every_depth_are_the_means_of_its_stages(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, in_channels=1, image_size=64).eval()
    depths = DEPTHS[name]
    assert list(depth_layers(model)) == depths
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(depth).register_forward_hook(
            lambda _, __, output, depth=depth: kept.update({depth: output.clone()})
        )
        for depth in depths
    ]
    hooks.append(head(model).register_forward_pre_hook(lambda _, inputs: kept.update(last=inputs[0])))
    batch = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        model(batch)
        for hook in hooks:
            hook.remove()
        pooled = with_depths(model, name, len(depths) + 1)
        assert isinstance(pooled, PooledClassifier)
        found = pooled.eval().pooled(batch)
    expected = []
    for depth in depths:
        own = kept[depth]
        if "vit" in name:
            expected += [own[:, 0], own[:, 1:].mean(1)]
        else:
            expected.append(own.mean((1, 2)) if "swin" in name else own.mean((2, 3)))
    torch.testing.assert_close(found, torch.cat([*expected, kept["last"]], dim=1))
    assert head(pooled).in_features == found.shape[1]


@pytest.mark.parametrize("name", ["resnet18", *rest("timm/convnext_atto")])
def test_the_depths_do_not_depend_on_the_images(name: str) -> None:
    small, large = (build_model(name, num_classes=2, in_channels=1, image_size=side) for side in (32, 160))
    assert depth_layers(small) == depth_layers(large)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("timm/pit_ti_224", 224, "PoolingVisionTransformer gives neither a map nor the tokens"),
        ("timm/hiera_tiny_224", 64, "depths of a Hiera cannot be found"),
    ],
)
def test_a_network_whose_depths_are_not_known_is_refused(name: str, side: int, words: str) -> None:
    model = build_model(name, num_classes=2, in_channels=1, image_size=side)
    with pytest.raises(ModelError, match=words):
        with_depths(model, name, 2)


def test_a_transformer_of_few_blocks_has_all_of_them() -> None:
    model = VisionTransformer(img_size=32, in_chans=1, embed_dim=16, depth=2, num_heads=2)
    model.pretrained_cfg = {}
    assert depth_layers(model) == {"blocks.0": 32, "blocks.1": 32}
