"""Tokens, positions, channels and heads of an activation."""

import pytest
import timm
import torch

from fastcka import Tap
from fastcka.capture import Capture
from fastcka.capture.selection import Layout, Unusable, layout_of, take

SEQUENCE = torch.randn(4, 1 + 9, 6)
MAP = torch.randn(4, 6, 3, 5)
CLASS = Layout(prefix_tokens=1, class_token=True, channels_last=False)
PLAIN = Layout(prefix_tokens=0, class_token=False, channels_last=False)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("all", SEQUENCE),
        ("cls", SEQUENCE[:, 0]),
        ("patches", SEQUENCE[:, 1:]),
        ("gap", SEQUENCE[:, 1:].mean(1)),
        (3, SEQUENCE[:, 3]),
        (-1, SEQUENCE[:, 9]),
        ((1, 2), SEQUENCE[:, 1 + 1 * 3 + 2]),
    ],
)
def test_tokens_of_a_sequence(tokens, expected):
    assert torch.equal(take(SEQUENCE, Tap("a", tokens=tokens), CLASS, None), expected)


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
    found = take(x, tap, PLAIN._replace(channels_last=channels_last), None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("x", "tokens", "layout", "reason"),
    [
        (SEQUENCE, "cls", PLAIN, "the network names no class token; tokens=0 takes the first"),
        (SEQUENCE, 10, CLASS, "10 was asked for, and there are 10, from 0 on"),
        (SEQUENCE, (3, 0), CLASS, "3 was asked for, and there are 3"),
        (SEQUENCE, (1, 1), PLAIN, "its patches are no square: give the number of the token"),
        (MAP, "cls", CLASS, "it is a map, which has no class token"),
        (MAP, 3, CLASS, r"it is a map: give the position as \(row, column\)"),
        (MAP[:, :, 0, 0], "gap", CLASS, r"it has no tokens or positions; its shape is \[4, 6\]"),
    ],
)
def test_what_an_activation_does_not_have(x, tokens, layout, reason):
    with pytest.raises(Unusable, match=reason):
        take(x, Tap("a", tokens=tokens), layout, None)


def taken(model, tap, x):
    found = {}
    with torch.no_grad():
        Capture(model, [tap]).run(
            lambda net: net(x), len(x), lambda name, a: found.update({name: a})
        )
    return found


def test_a_head_is_what_the_attention_makes_of_its_own_channels():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    x = torch.randn(4, 3, 32, 32)
    name = "blocks.1.attn.proj"
    [whole] = taken(vit, Tap(name, side="input"), x).values()
    for head in range(3):
        found = taken(vit, Tap(name, side="input", select=f"head:{head}"), x)
        [(label, one)] = found.items()
        assert label == f"{name} input[head:{head}]"
        assert torch.equal(one, whole[:, :, 64 * head : 64 * (head + 1)])


@pytest.mark.parametrize(
    ("pattern", "select", "reason"),
    [
        ("blocks.0.attn.proj", "head:3", "head 3 was asked for, and there are 3, from 0 on"),
        ("blocks.0.attn.qkv", "head:0", r"it is not \[n, tokens, 3 heads x 64\]: heads lie side"),
        ("patch_embed", "head:0", "no module around it says how many attention heads there are"),
        ("blocks.0", lambda x: None, "`select` returned NoneType, not a tensor"),
    ],
)
def test_heads_that_are_not_there(pattern, select, reason):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()
    if pattern == "patch_embed":
        vit.num_heads = None
    with pytest.raises(ValueError, match=reason):
        taken(vit, Tap(pattern, select=select), torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "options", "layout"),
    [
        ("vit_tiny_patch16_224", {}, Layout(1, True, False)),
        ("vit_medium_patch16_gap_240", {}, Layout(0, False, False)),
        ("vit_small_patch14_reg4_dinov2", {}, Layout(5, True, False)),
        ("deit_tiny_distilled_patch16_224", {}, Layout(2, True, False)),
        ("vit_medium_patch16_reg4_gap_256", {}, Layout(4, False, False)),
        ("swin_tiny_patch4_window7_224", {}, Layout(0, False, True)),
        ("resnet18", {}, Layout(0, False, False)),
    ],
)  # fmt: skip
def test_the_layout_is_what_the_network_says(name, options, layout):
    with torch.device("meta"):
        assert layout_of(timm.create_model(name, **options)) == layout


def test_a_map_of_swin_is_read_channels_last():
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1)
    ).eval()
    x = torch.randn(4, 3, 56, 56)
    [position] = taken(swin, Tap("layers.0.blocks.0", tokens=(2, 3)), x).values()
    [whole] = taken(swin, Tap("layers.0.blocks.0"), x).values()
    assert position.shape == (4, 96)
    assert torch.equal(position, whole[:, 2, 3])
