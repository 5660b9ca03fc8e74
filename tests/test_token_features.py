"""What is kept of each image for probes: tokens, positions, and maps cut into patches."""

import re

import pytest
import timm
import torch
from tolerance import U32, assert_close
from torch import nn

from fastcka import Tap
from fastcka.analysis.observer import Taps
from fastcka.analysis.patch_features import patch_features, patch_side, space_to_depth
from fastcka.analysis.token_features import token_features
from fastcka.capture import Capture


def kept(model, layers, tokens, images):
    with (
        torch.no_grad(),
        token_features(model, layers, tokens).watching(model, len(images)) as found,
    ):
        model(images)
    return found


def whole(model, layer, images):
    taken = {}
    with torch.no_grad():
        Capture(model, layer).run(
            lambda m: m(images), len(images), lambda n, x: taken.update({n: x.clone()})
        )
    return taken[layer]


VIT = {"img_size": 32, "depth": 2}
GAP = {"class_token": False, "global_pool": "avg"}
# Name, options, layer, prefix tokens (None is a map), whether there is a class token.
SEQUENCES = {
    "class token": ("vit_tiny_patch16_224", VIT, "blocks.1", 1, True),
    "gap": ("vit_tiny_patch16_224", {**VIT, **GAP}, "blocks.1", 0, False),
    "registers": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}, "blocks.1", 5, True),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT, "blocks.1", 2, True),
    "not square": ("vit_tiny_patch16_224", {**VIT, "img_size": (32, 48)}, "blocks.1", 1, True),
    "deit3": ("deit3_small_patch16_224", VIT, "blocks.1", 1, True),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2}, "blocks.1", 1, True),
    "mixer": ("mixer_s32_224", {"img_size": 64}, "blocks.1", 0, False),
    "mvit": ("mvitv2_tiny", {"img_size": 64}, "stages.3.blocks.0", 0, False),
    "hiera": ("hiera_tiny_224", {"img_size": 64, "stages": (1, 1, 1, 1)}, "blocks.2", 0, False),
}  # fmt: skip
SWIN = {"img_size": 32, "depths": (1, 1), "num_heads": (1, 2), "embed_dim": 24, "window_size": 2}
MAPS = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN, "layers.1.blocks.0", True),
    "resnet": ("resnet18", {}, "layer3.1", False),
    "bit": ("resnetv2_50x1_bit", {}, "stages.2.blocks.1", False),
    "convnext": ("convnext_atto", {}, "stages.2.blocks.1", False),
}


def built(name, options):
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    size = options.get("img_size", 64)
    return model, torch.randn(3, 3, *(size if isinstance(size, tuple) else (size, size)))


@pytest.mark.parametrize("family", SEQUENCES)
def test_tokens_of_sequences(family):
    name, options, layer, prefix, has_class_token = SEQUENCES[family]
    model, images = built(name, options)
    x = whole(model, layer, images)
    assert kept(model, layer, "each", images)[f"{layer}[each]"].equal(x[:, prefix:])
    assert kept(model, layer, "first", images)[f"{layer}[first]"].equal(x[:, prefix])
    gap = kept(model, layer, "gap", images)[f"{layer}[gap]"]
    assert_close(gap, x[:, prefix:].mean(1), 8 * U32 * float(x.abs().max()))
    if has_class_token:
        assert kept(model, layer, "cls", images)[f"{layer}[cls]"].equal(x[:, 0])
    else:
        with pytest.raises(ValueError, match="it has no class token"):
            kept(model, layer, "cls", images)


@pytest.mark.parametrize("family", MAPS)
def test_positions_of_maps(family):
    name, options, layer, channels_last = MAPS[family]
    model, images = built(name, options)
    x = whole(model, layer, images)
    x = x if channels_last else x.permute(0, 2, 3, 1)
    each = kept(model, layer, "each", images)[f"{layer}[each]"]
    assert each.equal(x.flatten(1, 2))
    assert kept(model, layer, "first", images)[f"{layer}[first]"].equal(x[:, 0, 0])
    gap = kept(model, layer, "gap", images)[f"{layer}[gap]"]
    assert_close(gap, x.mean((1, 2)), 64 * U32 * float(x.abs().max()))
    with pytest.raises(ValueError, match="it is a map, which has no class token"):
        kept(model, layer, "cls", images)


def test_every_block_is_kept_and_other_sides_can_be_tapped():
    model, images = built(*SEQUENCES["class token"][:2])
    assert list(kept(model, "blocks", "each", images)) == ["blocks.0[each]", "blocks.1[each]"]
    found = kept(model, ["norm", Tap("blocks.1", side="input")], "first", images)
    assert list(found) == ["blocks.1 input[first]", "norm[first]"]


def test_what_is_kept_outlives_what_is_overwritten():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True))
    images = torch.randn(4, 3, 2, 2)
    assert float(kept(net, "0", "each", images)["0[each]"].min()) < 0


@pytest.mark.parametrize(
    ("layers", "tokens", "text"),
    [
        ("blocks", "all", "`tokens` must be 'cls', 'gap', 'first' or 'each', but is 'all'"),
        (
            Tap("blocks.0", tokens="cls"),
            "gap",
            "`layers` holds 'blocks.0[cls]', which chooses already",
        ),
        ("blocks.9", "cls", "has no layer 'blocks.9'"),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(layers, tokens, text):
    model, _ = built(*SEQUENCES["class token"][:2])
    with pytest.raises(ValueError, match=re.escape(text)):
        token_features(model, layers, tokens)


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_space_to_depth_is_a_permutation(side):
    maps = torch.randn(2, 5, 6, 12).double()
    deep = space_to_depth(maps, side)
    assert deep.shape == (2, 5 * side**2, 6 // side, 12 // side)
    assert deep.flatten(1).sort().values.equal(maps.flatten(1).sort().values)
    assert_close(deep.flatten(1).norm(dim=1), maps.flatten(1).norm(dim=1), 1e-12)
    # All channels at one position are the pixels of one patch.
    here = maps[:, :, side * 0 : side, 6 : 6 + side].flatten(1).sort().values
    assert deep[:, :, 0, 6 // side].sort().values.equal(here)


def test_stages_of_a_resnet_are_made_about_as_wide_as_the_last():
    model, images = built("resnet50", {})
    observer = Taps("layer*.0", lambda layer, x: patch_features(x, 2048, (2, 2)))
    with torch.no_grad(), observer.watching(model, 3) as found:
        model(images)
    widths = {layer: x.shape[1] for layer, x in found.items()}
    assert widths == {"layer1.0": 1024, "layer2.0": 2048, "layer3.0": 1024, "layer4.0": 2048}
    last = whole(model, "layer4.0", images)
    assert_close(found["layer4.0"], last.mean((2, 3)), 8 * U32 * float(last.abs().max()))


def test_patches_are_pooled_to_the_last_size_before_the_mean():
    """In bins that overlap, the positions within two of them count twice."""
    maps = torch.arange(3.0).reshape(1, 1, 1, 3)
    # Bins {0, 1} and {1, 2}: means 0.5 and 1.5.
    assert patch_features(maps**2, 1, (1, 2)).item() == (0.5 + 2.5) / 2
    smaller = torch.randn(2, 4, 2, 2)
    assert_close(patch_features(smaller, 4, (7, 7)), smaller.mean((2, 3)), 1e-6)
    last = smaller.permute(0, 2, 3, 1)
    assert patch_features(last, 8, (2, 2), channels_last=True).equal(
        patch_features(smaller, 8, (2, 2))
    )


def test_the_side_of_a_patch_divides_the_map():
    assert patch_side(256, 2048, (15, 15)) == 3
    assert patch_side(64, 2048, (14, 28)) == 7
    assert patch_side(4096, 2048, (7, 7)) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: patch_side(0, 8, (2, 2)), "must be 1 or more, but are 0, 8 and (2, 2)"),
        (lambda: space_to_depth(torch.zeros(1, 2, 4, 6), 4), "that 4 divides, but is [1, 2, 4, 6]"),
        (lambda: patch_features(torch.zeros(1, 2, 4), 4, (2, 2)), "four axes, but is [1, 2, 4]"),
    ],
)
def test_maps_that_are_none_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
