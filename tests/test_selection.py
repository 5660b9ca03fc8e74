"""Tokens, positions, channels and heads of an activation."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from fastcka import Tap
from fastcka.capture import Capture
from fastcka.capture.modules import named
from fastcka.capture.selection import Layout, Unusable, layout_of, take

SEQUENCE = torch.randn(4, 1 + 9, 6)
MAP = torch.randn(4, 6, 3, 5)
CLASS = Layout(prefix=1, class_token=True, patches=9)
PLAIN = Layout()
UNKNOWN = Layout(prefix=None)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("all", SEQUENCE),
        ("cls", SEQUENCE[:, 0]),
        ("patches", SEQUENCE[:, 1:]),
        ("gap", SEQUENCE[:, 1:].mean(1)),
        (3, SEQUENCE[:, 3]),
        (-1, SEQUENCE[:, 9]),
        (np.int64(3), SEQUENCE[:, 3]),
        ((1, 2), SEQUENCE[:, 1 + 1 * 3 + 2]),
    ],
)
def test_tokens_of_a_sequence(tokens, expected):
    assert torch.equal(take(SEQUENCE, Tap("a", tokens=tokens), CLASS), expected)


def test_before_the_class_token_joins_there_are_patches_alone():
    patches = SEQUENCE[:, 1:]
    for tokens, expected in [
        ("gap", patches.mean(1)),
        ("patches", patches),
        ((0, 1), patches[:, 1]),
    ]:
        assert torch.equal(take(patches, Tap("a", tokens=tokens), CLASS), expected)
    with pytest.raises(Unusable, match="it has no class token"):
        take(patches, Tap("a", tokens="cls"), CLASS)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        (Tap("a", tokens="patches"), MAP),
        (Tap("a", tokens="gap"), MAP.mean((2, 3))),
        (Tap("a", tokens=(2, 4)), MAP[:, :, 2, 4]),
        (Tap("a", select=slice(1, 3)), MAP[:, 1:3]),
        (Tap("a", select=slice(1, 3), tokens=(0, -1)), MAP[:, 1:3, 0, 4]),
        (Tap("a", select=torch.exp, tokens=(0, 0)), MAP.exp()[:, :, 0, 0]),
    ],
)
def test_positions_and_channels_of_a_map(tap, expected, channels_last):
    x = MAP.permute(0, 2, 3, 1).contiguous() if channels_last else MAP
    if channels_last and expected.ndim == 4:
        expected = expected.permute(0, 2, 3, 1)
    found = take(x, tap, Layout(channels_last=channels_last))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("x", "tokens", "layout", "reason"),
    [
        (SEQUENCE, "cls", PLAIN, "it has no class token, or does not say so; tokens=0 takes the"),
        (SEQUENCE, "gap", UNKNOWN, "does not say how many tokens come before the patches"),
        (SEQUENCE, 10, CLASS, "10 was asked for, and there are 10"),
        (SEQUENCE, (3, 0), CLASS, "3 was asked for, and there are 3"),
        (SEQUENCE, (1, 1), PLAIN, "its patches are no square: give the number of the token"),
        (MAP, "cls", CLASS, "it is a map, which has no class token"),
        (MAP, 3, CLASS, r"it is a map: give the position as \(row, column\)"),
        (MAP[:, :, 0, 0], "gap", CLASS, r"it has no tokens or positions; its shape is \[4, 6\]"),
    ],
)
def test_what_an_activation_does_not_have(x, tokens, layout, reason):
    with pytest.raises(Unusable, match=reason):
        take(x, Tap("a", tokens=tokens), layout)


def taken(model, tap, x):
    """The activation, and the name of the layer."""
    found = {}
    with torch.no_grad():
        Capture(model.eval(), [tap]).run(
            lambda net: net(x), len(x), lambda name, a: found.update({name: a})
        )
    [(name, a)] = found.items()
    return a, name


tiny_vit = partial(
    timm.create_model, "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3
)  # fmt: skip


def test_a_head_is_what_the_attention_makes_of_its_own_channels():
    vit, x = tiny_vit(), torch.randn(4, 3, 32, 32)
    name = "blocks.1.attn.proj"
    whole, _ = taken(vit, Tap(name, side="input"), x)
    for head in range(3):
        one, label = taken(vit, Tap(name, side="input", select=f"head:{head}"), x)
        assert label == f"{name} input[head:{head}]"
        assert torch.equal(one, whole[:, :, 64 * head : 64 * (head + 1)])


@pytest.mark.parametrize(
    ("tap", "reason"),
    [
        (Tap("blocks.0.attn.proj", side="input", select="head:3"), "head 3 .* there are 3, from 0"),
        (Tap("blocks.0.attn.proj", select="head:0"), "side by side only in the input of an attent"),
        (Tap("blocks.0.attn", side="input", select="head:0"), "side by side only in the input"),
        (Tap("blocks.0.attn.qkv", side="input", select="head:0"), "side by side only in the input"),
        (Tap("patch_embed", side="input", select="head:0"), "side by side only in the input"),
        (Tap("blocks.0", select=lambda x: None), "`select` returned NoneType, not a tensor"),
    ],
    ids=["beyond", "output", "attention", "qkv", "embedding", "nothing"],
)
def test_heads_are_taken_where_they_lie_apart(tap, reason):
    with pytest.raises(ValueError, match=reason):
        taken(tiny_vit(), tap, torch.randn(4, 3, 32, 32))


def test_a_head_of_other_width_than_the_channels_is_refused():
    tap = Tap("attn.proj", side="input", select="head:0")
    with pytest.raises(Unusable, match="its channels are not 3 heads of 10; its shape is"):
        take(SEQUENCE, tap, Layout(heads=(3, 10)))


@pytest.mark.parametrize(
    ("name", "layer", "layout"),
    [
        ("vit_tiny_patch16_224", "blocks.0", Layout(1, True, 196, True)),
        ("vit_medium_patch16_gap_240", "blocks.0", Layout(0, False, 225, True)),
        ("vit_small_patch14_reg4_dinov2", "blocks.0", Layout(5, True, 1369, True)),
        ("deit_tiny_distilled_patch16_224", "blocks.0", Layout(2, True, 196, True)),
        ("vit_medium_patch16_reg4_gap_256", "blocks.0", Layout(4, False, 256, True)),
        ("vit_tiny_patch16_224", "blocks.0.attn.proj", Layout(1, True, 196, True, (3, 64))),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", Layout(channels_last=True)),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj", Layout()),
        ("resnet18", "layer1.0", Layout()),
        ("resnet18", "layer1.0.act1", Layout()),
        ("convnext_tiny", "stages.0.blocks.0", Layout()),
        ("convnext_tiny", "stages.0.blocks.0.mlp.fc1", Layout(channels_last=True)),
        ("convnext_tiny", "stages.0.blocks.0.mlp.act", Layout(channels_last=True)),
        ("convnext_tiny", "stages.1.downsample.0", Layout()),
    ],
)
def test_the_layout_is_what_the_network_says(name, layer, layout):
    with torch.device("meta"):
        modules = named(timm.create_model(name))
    assert layout_of(layer, modules) == layout


def test_channels_of_torchvisions_swin_come_last():
    with torch.device("meta"):
        modules = named(torchvision.models.swin_t())
    assert layout_of("features.1.0", modules).channels_last
    assert not layout_of("features.0.0", modules).channels_last


def test_a_wrapped_network_has_the_tokens_of_its_own():
    class Wrap(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = tiny_vit()

        def forward(self, x):
            return self.backbone(x)

    wrapped, x = Wrap(), torch.randn(4, 3, 32, 32)
    for tokens in ("gap", "patches", "cls"):
        inside, _ = taken(wrapped, Tap("backbone.blocks.1", tokens=tokens), x)
        alone, _ = taken(wrapped.backbone, Tap("blocks.1", tokens=tokens), x)
        assert torch.equal(inside, alone)


def test_a_network_that_does_not_say_where_its_patches_begin_is_not_guessed():
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 8)
    tap = Tap("encoder.layers.encoder_layer_0", tokens="gap")
    with pytest.raises(ValueError, match="does not say how many tokens come before the patches"):
        taken(vit, tap, torch.randn(5, 3, 16, 16))


def test_a_map_of_swin_is_read_channels_last():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1))
    x = torch.randn(4, 3, 56, 56)
    position, _ = taken(swin, Tap("layers.0.blocks.0", tokens=(2, 3)), x)
    whole, _ = taken(swin, Tap("layers.0.blocks.0"), x)
    assert position.shape == (4, 96)
    assert torch.equal(position, whole[:, 2, 3])
