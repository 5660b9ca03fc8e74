"""Norm ratios and angles of skip connections by closed forms, the definition, and all families."""

import re

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from tolerance import FLOAT64, assert_close
from torch import nn

import fastcka
from fastcka import Tap
from fastcka.analysis.skip_connections import MEASURES, SkipConnections
from fastcka.analysis.sublayers import Residual, residuals
from fastcka.capture import Capture
from fastcka.maths import skip_connections as definition


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def watched(model, x, places=None, measures=MEASURES):
    with SkipConnections(places, measures).watching(model, len(x)) as values, torch.no_grad():
        model(x.clone())
    return values


def vit(**options):
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2}
    return VisionTransformer(**shape | options).eval()


class Turned(nn.Module):
    """c times a quarter-turn of every pair of channels."""

    def __init__(self, c):
        super().__init__()
        self.c = c

    def forward(self, x, **options):
        even, odd = x[..., ::2], x[..., 1::2]
        return self.c * torch.stack([-odd, even], -1).flatten(-2)


def planted(c):
    model = vit(class_token=True, reg_tokens=2)
    for block in model.blocks:
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()
        block.attn, block.mlp = Turned(c), Turned(c)
    return model


@pytest.mark.parametrize("c", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_turn_has_the_closed_form_at_every_token(c, dtype):
    values = watched(planted(c).to(dtype), noise(3, 3, 16, 16, dtype=dtype))
    assert len(values) == 4 * 6
    # The network rounds c z once in each channel; in float64 what is computed here rounds too.
    tolerance = 2 * torch.finfo(dtype).eps
    for measure, expected in zip(MEASURES, definition.of_quarter_turn(c), strict=True):
        for place in ("blocks.0.attn", "blocks.0.mlp", "blocks.2.mlp"):
            value = values[f"{measure}/{place}"]
            assert value.dtype == torch.float64
            assert value.shape == (3, 3 + 16)
            assert_close(value, torch.full_like(value, expected), tolerance * max(1, expected))


def activations(model, x, taps):
    taken = {}
    with torch.no_grad():
        Capture(model, taps).run(
            lambda m: m(x.clone()), len(x), lambda name, a: taken.update({name: a.clone()})
        )
    return taken


def test_the_places_add_up_exactly_with_their_layer_scale():
    model = vit(init_values=0.3, reg_tokens=1).eval()
    x = noise(2, 3, 16, 16)
    for residual in residuals(model):
        parts = residual.skip, residual.branch, residual.total
        z, f, total = (next(iter(activations(model, x, [tap]).values())) for tap in parts)
        assert torch.equal(z + f - total, torch.zeros_like(z))
    half = watched(model, x)["norm_ratio/blocks.0.attn"]
    with torch.no_grad():
        model.blocks[0].ls1.gamma *= 2
    twice = watched(model, x)["norm_ratio/blocks.0.attn"]
    assert_close(half / twice, torch.full_like(half, 2), 1e-6)


def as_tokens(x):
    """[n, channels, height, width] to [n, tokens, channels]."""
    return (x.flatten(2).transpose(1, 2) if x.ndim == 4 else x).double().numpy()


def assert_is_definition(values, place, z, f):
    for i, (skip, branch) in enumerate(zip(as_tokens(z), as_tokens(f), strict=True)):
        total = skip + branch
        expected = {
            "norm_ratio": definition.norm_ratio(skip, branch),
            "cos_skip_total": definition.cosine(skip, total),
            "cos_skip_branch": definition.cosine(skip, branch),
            "cos_total_branch": definition.cosine(total, branch),
        }
        for measure in MEASURES:
            found = values[f"{measure}/{place}"][i].numpy()
            np.testing.assert_allclose(found, expected[measure], rtol=FLOAT64, atol=FLOAT64)


def preactivated():
    return ResNetV2((1, 2), (16, 32), num_classes=2, stem_chs=8, norm_layer=BatchNormAct2d)


# network, a block with a projection, one without, what its branch ends in
RESNETS = [
    (lambda: timm.create_model("resnet18"), "layer2.0", "layer1.0", "bn2"),
    (lambda: timm.create_model("resnet50"), "layer1.0", "layer1.1", "bn3"),
    (lambda: timm.create_model("seresnet18"), "layer2.0", "layer1.0", "se"),
    (preactivated, "stages.1.blocks.0", "stages.1.blocks.1", "conv3"),
]


@pytest.mark.parametrize(
    ("make", "projected", "plain", "end"),
    RESNETS,
    ids=["resnet18", "resnet50", "seresnet18", "preactivated"],
)
def test_resnets_are_the_definition_though_they_overwrite_the_branch(make, projected, plain, end):
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts the last norms at 0
            nn.init.normal_(module.weight, 1, 0.1)
    x = noise(2, 3, 32, 32)
    values = watched(model, x)
    skips = Tap(f"{projected}.downsample"), Tap(plain, side="input")
    for place, skip in zip((projected, plain), skips, strict=True):
        taps = skip, Tap(f"{place}.{end}")
        z, f = (next(iter(activations(model, x, [tap]).values())) for tap in taps)
        assert_is_definition(values, place, z, f)


def test_a_vit_is_the_definition():
    model, x = vit(init_values=0.5), noise(2, 3, 16, 16)
    values = watched(model, x)
    taps = Tap("blocks.1", side="input"), Tap("blocks.1.ls1"), Tap("blocks.1.ls2")
    z1, f1, f2 = (next(iter(activations(model, x, [tap]).values())) for tap in taps)
    assert_is_definition(values, "blocks.1.attn", z1, f1)
    assert_is_definition(values, "blocks.1.mlp", z1 + f1, f2)


class Overwriting(nn.Module):
    """A branch that writes on its skip connection once it has read it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        kept = x.clone()
        y = self.first(x)
        x.zero_()
        return kept + self.second(y)


def test_what_is_overwritten_before_its_branch_comes_is_seen_as_it_was():
    model, x = nn.Sequential(nn.Linear(4, 4), Overwriting()), noise(2, 3, 4)
    with torch.no_grad():
        z = model[0](x)
        f = model[1].second(model[1].first(z))
    place = Residual("one", Tap("1", side="input"), Tap("1.second"), Tap("1"))
    assert_is_definition(watched(model, x, [place]), "one", z, f)


def test_extremes_have_a_value_or_none():
    model = vit()
    nn.init.zeros_(model.blocks[1].mlp.fc2.weight)
    nn.init.zeros_(model.blocks[1].mlp.fc2.bias)
    values = watched(model, noise(2, 3, 16, 16))
    assert values["norm_ratio/blocks.1.mlp"].isinf().all()
    assert values["cos_skip_branch/blocks.1.mlp"].isnan().all()
    assert_close(values["cos_skip_total/blocks.1.mlp"], torch.ones(2, 17), FLOAT64)


def test_only_what_was_asked_for():
    model = vit()
    values = watched(model, noise(2, 3, 16, 16), residuals(model)[2:3], ["cos_skip_total"])
    assert list(values) == ["cos_skip_total/blocks.1.attn"]


def test_nothing_is_left_in_the_network_also_after_an_error():
    model = vit()
    handles = [module._forward_hooks for module in model.modules()]
    handles += [module._forward_pre_hooks for module in model.modules()]

    def run():
        with SkipConnections().watching(model, 2):
            model(noise(2, 3, 16, 16))
            raise KeyError("from inside")

    with pytest.raises(KeyError):
        run()
    assert not any(handles)


def test_half_precision_and_autocast():
    model, x = vit(), noise(2, 3, 16, 16)
    exact = watched(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = watched(model, x)
    half = watched(vit().bfloat16(), x.bfloat16())
    assert half.keys() == rough.keys() == exact.keys()
    for name in exact:
        assert rough[name].dtype == half[name].dtype == torch.float64
        assert not torch.equal(rough[name], exact[name])
        if name.startswith("cos"):  # entries of 8 bits, of either sign
            assert_close(rough[name], exact[name], 2**-5)


# Families

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"img_size": 56, "depths": (1, 1), "embed_dim": 8, "num_heads": (1, 2)}

# name, options, first place, its tokens, last place, its tokens
FAMILIES = [
    ("vit_tiny_patch16_224", SMALL, "blocks.0.attn", 17, "blocks.1.mlp", 17),
    ("vit_tiny_patch16_224", SMALL | {"class_token": False, "global_pool": "avg"},
     "blocks.0.attn", 16, "blocks.1.mlp", 16),
    ("deit_tiny_distilled_patch16_224", SMALL, "blocks.0.attn", 18, "blocks.1.mlp", 18),
    ("deit3_small_patch16_224", SMALL, "blocks.0.attn", 17, "blocks.1.mlp", 17),
    ("vit_base_patch16_clip_224", SMALL, "blocks.0.attn", 17, "blocks.1.mlp", 17),
    ("vit_small_patch14_reg4_dinov2", SMALL, "blocks.0.attn", 21, "blocks.1.mlp", 21),
    ("eva02_tiny_patch14_224", SMALL, "blocks.0.attn", 17, "blocks.1.mlp", 17),
    ("vit_small_patch16_dinov3", SMALL, "blocks.0.attn", 21, "blocks.1.mlp", 21),
    ("swin_tiny_patch4_window7_224", SWIN,
     "layers.0.blocks.0.attn", 196, "layers.1.blocks.0.mlp", 49),
    ("resnet18", {}, "layer1.0", 256, "layer4.1", 4),
    ("resnetv2_18", {}, "stages.0.blocks.0", 256, "stages.3.blocks.1", 4),
    ("regnety_002", {}, "s1.b1", 256, "s4.b7", 4),
    ("resnetv2_50x1_bit", {}, "stages.0.blocks.0", 256, "stages.3.blocks.2", 4),
    ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
     "stages.0.blocks.0", 256, "stages.3.blocks.0", 4),
    ("fastcka_mixer_mini", {}, "blocks.0.mlp_tokens", 64, "blocks.7.mlp_channels", 64),
]  # fmt: skip


def create(name, options):
    fastcka.models.load("fastcka_vit_mini")  # the small networks are registered
    return timm.create_model(name, **options).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "first", "low", "last", "high"), FAMILIES)
def test_families(name, options, first, low, last, high):
    model = create(name, options)
    size = options.get("img_size", 64)
    values = watched(model, noise(1, 3, size, size), measures=["cos_skip_total"])
    shapes = {place.partition("/")[2]: tuple(x.shape) for place, x in values.items()}
    places = [residual.name for residual in residuals(model)]
    assert (places[0], places[-1]) == (first, last)
    assert sorted(shapes) == sorted(places)
    assert shapes[first] == (1, low)
    assert shapes[last] == (1, high)
    for x in values.values():
        assert ((x.abs() <= 1 + 1e-12) | x.isnan()).all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mvitv2_tiny", "'stages.0.blocks.0' of MultiScaleVit pools them in between"),
        ("hiera_tiny_224", "Hiera moves them"),
        ("swinv2_tiny_window8_256", "normalises behind them"),
        ("densenet121", "DenseNet is not"),
    ],
)
def test_families_it_does_not_apply_to(name, says):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=says):
        watched(model, torch.zeros(1, 3, 8, 8))


def test_a_block_without_skip_connections_is_told_and_can_be_left_out():
    model = create("fastcka_vit_mini_noskip4", {})
    x = noise(1, 3, 64, 64)
    with pytest.raises(
        ValueError, match=r"what follows 'blocks.4.attn' is not its skip connection"
    ):
        watched(model, x)
    places = [one for one in residuals(model) if not one.name.startswith("blocks.4.")]
    assert len(watched(model, x, places)) == 4 * 14


def test_a_place_where_the_sum_comes_first_is_no_addition():
    early = Residual("early", Tap("blocks.0", side="input"), Tap("blocks.1"), Tap("blocks.0.mlp"))
    with pytest.raises(ValueError, match="what follows 'early' is not its skip connection plus"):
        watched(vit(), noise(1, 3, 16, 16), [early])


def test_refusals():
    wrong = Residual("both", Tap("blocks.0", side="input"), Tap("blocks.0.mlp.fc1"))
    says = (
        "at 'both' the skip connection has 17 tokens of 8 channels and the branch 17 tokens of 32"
    )
    with pytest.raises(ValueError, match=re.escape(says)):
        watched(vit(), noise(1, 3, 16, 16), [wrong])
    for places in ([], ["blocks.0"], [Tap("blocks.0")]):
        with pytest.raises(TypeError, match=r"`places` must be some of `residuals\(model\)`"):
            SkipConnections(places)
    for measures in ([], "norm_ratio", ["norm_ratio", "cosine"]):
        with pytest.raises(ValueError, match="`measures` must be some of norm_ratio, cos_skip_to"):
            SkipConnections(measures=measures)


def test_an_observer_watches_one_network_after_another():
    observer, x = SkipConnections(), noise(2, 3, 16, 16)
    for model in (vit(), vit(depth=1), vit(depth=1)):
        for images in (x, x[:1]):
            with observer.watching(model, len(images)) as values, torch.no_grad():
                model(images)
            expected = watched(model, images)
            assert values.keys() == expected.keys()
            assert all(torch.equal(values[name], expected[name]) for name in expected)
