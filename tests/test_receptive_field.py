"""Receptive fields by closed forms, by the definition, and through networks of all families."""

import math
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
from fastcka.analysis.centre_cell import centre_cell
from fastcka.analysis.field_maps import axis_variance, centre_share, mass_radius, patch_masses
from fastcka.analysis.receptive_field import receptive_fields
from fastcka.analysis.sublayers import after_residual, before_residual
from fastcka.maths import receptive_field as definition


def convolutions(layers, channels=1, inputs=1, fill=None):
    """A stack of 3x3 convolutions in float64, with padding."""
    net = nn.Sequential(
        *(
            nn.Conv2d(channels if i else inputs, channels, 3, padding=1, bias=False)
            for i in range(layers)
        )
    ).double()
    if fill is not None:
        for weight in net.parameters():
            nn.init.constant_(weight, fill)
    return net


def fields(model, images, layers, method="exact", patch=1, **options):
    return receptive_fields(model, images, layers, method=method, patch=patch, **options)


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


# Closed forms


@pytest.mark.parametrize("method", ["exact", "sum"])
def test_uniform_convolutions_are_a_random_walk(method):
    depth, size = 6, 21
    net = convolutions(depth, fill=1 / 9)
    found = fields(net, noise(1, 1, size, size, dtype=torch.float64), "*", method)
    for i, one in enumerate(found.maps, start=1):
        rows, columns = (one > 0).nonzero().T
        assert len(rows.unique()) == len(columns.unique()) == 2 * i + 1
        assert (one > 0).sum() == (2 * i + 1) ** 2
        assert_close(one.sum(), 1, FLOAT64)
        assert_close(axis_variance(one), [definition.walk_variance(i)] * 2, FLOAT64)
        assert definition.walk_variance(i) == pytest.approx(2 * i / 3)
    assert found.centres.tolist() == [[10, 10]] * depth


def test_random_kernels_spread_their_squares_as_a_random_walk():
    depth, nets = 6, 60
    squares = []
    for seed in range(nets):
        torch.manual_seed(seed)
        net = convolutions(depth, channels=8)
        for weight in net.parameters():
            nn.init.normal_(weight)
        x = torch.zeros(1, 1, 13, 13, dtype=torch.float64)
        squares.append(fields(net, x, str(depth - 1), "projection", seed=seed).maps[0] ** 2)
    squares = torch.stack(squares)
    total = squares.sum(0)
    found = axis_variance(total).mean()
    without = axis_variance(total - squares).mean(1)  # one net left out
    error = math.sqrt((nets - 1) / nets * ((without - without.mean()) ** 2).sum())
    assert error < 0.2
    assert abs(found - definition.walk_variance(depth)) < 3 * error


def test_a_patch_embedding_sees_its_own_patch_and_nothing_else():
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    found = fields(vit, noise(2, 3, 32, 32), ["patch_embed", "norm_pre"], patch=8)
    for one in found.maps:  # without the class token, and behind it
        inside = one[16:24, 16:24]
        assert (inside > 0).all()
        assert inside.sum() == one.sum()
    assert (found.centre_shares == 1).all()
    assert found.centres.tolist() == [[19.5, 19.5]] * 2


class Mix(nn.Module):
    """Linear attention (1 - α) I + α J / N over tokens."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        return (1 - self.alpha) * x + self.alpha * x.mean(1, keepdim=True)


class Mixing(nn.Module):
    num_prefix_tokens = 0

    def __init__(self, alpha, layers):
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 4, stride=4)
        self.layers = nn.ModuleList(Mix(alpha) for _ in range(layers))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("method", ["exact", "projection", "sum"])
def test_even_mixing_leaves_the_centre_what_the_closed_form_says(method):
    alpha, depth, tokens = 0.3, 4, 20
    net = Mixing(alpha, depth).double()
    found = fields(net, noise(1, 3, 16, 20, dtype=torch.float64), "layers.*", method, patch=4)
    expected = [definition.mixing_share(alpha, i, tokens) for i in range(1, depth + 1)]
    assert_close(found.centre_shares[:, 0], expected, FLOAT64)
    assert_close(centre_share(found.maps, 4), expected, FLOAT64)
    masses = patch_masses(found.maps, 4)
    assert (masses[:, 2, 2] == masses.amax((1, 2))).all()
    power = np.linalg.matrix_power((1 - alpha) * np.eye(tokens) + alpha / tokens, depth)
    assert_close(masses[-1].flatten(), power[2 * 5 + 2], FLOAT64)


# Functions of maps


def test_radius_holds_the_share_it_says():
    flat = torch.ones(31, 31)
    radius = mass_radius(flat, (15, 15))
    rows, columns = np.ogrid[-15:16, -15:16]
    distances = np.sqrt(rows**2 + columns**2)
    within, below = ((distances <= radius.item() + step).sum() for step in (1e-9, -1e-9))
    assert within >= 31**2 / 2 > below
    assert radius.item() == pytest.approx(31 / math.sqrt(2 * math.pi), abs=0.5)  # π r² = half
    assert mass_radius(flat, (15, 15), 1).item() == pytest.approx(15 * math.sqrt(2))
    point = torch.zeros(9, 9)
    point[2, 7] = 3
    assert mass_radius(point, (2, 7)) == 0
    assert mass_radius(point, (5, 3)) == 5
    both = mass_radius(torch.stack([point, point]), torch.tensor([[2, 7], [5, 3]]))
    assert both.tolist() == [0, 5]


def test_shares_of_maps():
    one = torch.zeros(8, 12)
    one[4:, 4:8] = 1  # the centre patch of 2 x 3 patches is (1, 1)
    assert centre_share(one, 4) == 1
    assert centre_share(torch.ones(2, 8, 12), 4).tolist() == [1 / 6, 1 / 6]
    assert patch_masses(one, 4).tolist() == [[0, 0, 0], [0, 1, 0]]
    assert centre_share(torch.zeros(4, 4), 4).isnan()
    assert mass_radius(torch.zeros(4, 4), (2, 2)).isnan()
    assert axis_variance(torch.zeros(4, 4)).isnan().all()
    assert_close(axis_variance(torch.ones(5, 9)), [2, 20 / 3], FLOAT64)  # (n² - 1) / 12


# The definition, and torch's own Jacobian


def test_a_stack_of_convolutions_is_the_definition():
    net = convolutions(2, channels=3, inputs=2)
    kernels = [weight.detach().numpy() for weight in net.parameters()]

    def by_definition(x):
        return definition.convolve(definition.convolve(x, kernels[0]), kernels[1])

    found = fields(net, noise(3, 2, 7, 6, dtype=torch.float64), "1")
    assert_close(found.maps[0], definition.receptive_field(by_definition, (2, 7, 6)), FLOAT64)
    assert found.centres.tolist() == [[3, 3]]


def test_exact_is_the_jacobian_of_torch_and_the_others_are_what_they_say():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 18, 3, 2, 1), nn.BatchNorm2d(18), nn.ReLU(True), nn.Conv2d(18, 4, 3), nn.Tanh()
    )
    net = net.double().eval()
    x = noise(3, 3, 9, 11, dtype=torch.float64)
    found = fields(net, x, ["1", "4"], batch=40)

    def centres(x):
        low = net[:2](x)
        return low[0, :, 2, 3], net(x.clone())[0, :, 1, 2]

    expected, summed, squared = [], [], []
    for image in x:
        jacobians = torch.autograd.functional.jacobian(centres, image[None])
        expected.append(torch.stack([j[:, 0].abs().mean((0, 1)) for j in jacobians]))
        summed.append(torch.stack([j[:, 0].mean(0).abs().mean(0) for j in jacobians]))
        squared.append(torch.stack([(j[:, 0] ** 2).mean(0).sqrt().mean(0) for j in jacobians]))
    assert_close(found.maps, torch.stack(expected).mean(0), FLOAT64)
    assert_close(found.maps, fields(net, x, ["1", "4"], batch=1).maps, FLOAT64)
    assert_close(fields(net, x, ["1", "4"], "sum").maps, torch.stack(summed).mean(0), FLOAT64)
    # A mean of 4000 squares of normals: a standard error of √(2/4000) of each, half of it after the
    # root, 1.1 %; five of these.
    many = fields(net, x, ["1", "4"], "projection", projections=4000, batch=400).maps
    expected = torch.stack(squared).mean(0)
    assert ((many - expected).abs() <= 0.056 * expected).all()
    singles = torch.stack([centre_share(fields(net, one[None], "4").maps, 1)[0] for one in x])
    assert_close(found.centre_shares[1], singles, FLOAT64)


@pytest.fixture(scope="module")
def untrained():
    """Attention of the sixth block of an untrained ViT, before and after the addition."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=6)
    taps = [Tap("blocks.5.attn"), Tap("blocks.5.norm2", side="input")]
    return {
        method: receptive_fields(vit, noise(1, 3, 64, 64), taps, method=method)
        for method in ("exact", "projection", "sum")
    }


def test_attention_of_an_untrained_vit_is_global_and_its_skip_connections_are_not(untrained):
    before, after = untrained["exact"].centre_shares.mean(1).tolist()
    assert before == pytest.approx(0.02, abs=0.004)  # of 1/64 = 0.0156 if all patches were alike
    assert after == pytest.approx(0.77, abs=0.03)
    masses = patch_masses(untrained["exact"].maps[1], 8)
    assert masses[4, 4] == masses.max()


def test_sixteen_projections_are_near_the_exact_field_and_a_sum_is_less_so(untrained):
    def correlation(method):
        maps = [untrained[m].maps[1].flatten() for m in (method, "exact")]
        return torch.corrcoef(torch.stack(maps))[0, 1]

    assert correlation("projection") >= 0.99
    assert correlation("sum") < correlation("projection") - 0.03
    share = untrained["projection"].centre_shares - untrained["exact"].centre_shares
    # Off by chance, and as a quadratic mean stands for a mean; seen are 0.010 to 0.012.
    assert share.abs().max() <= 0.015


# How it is computed


def trained_vit():
    return fastcka.models.load("fastcka_vit_mini", pretrained=True).module


@pytest.mark.parametrize("method", ["exact", "projection", "sum"])
def test_neither_the_batch_nor_other_layers_matter(method):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=18, depth=2, num_heads=2).double()
    x = noise(5, 3, 32, 32, dtype=torch.float64)
    layers = after_residual(vit)
    whole = receptive_fields(vit, x, layers, method=method, projections=20)
    for batch in (1, 7, 40):
        part = receptive_fields(vit, x, layers, method=method, projections=20, batch=batch)
        assert_close(part.maps, whole.maps, FLOAT64)
        assert_close(part.radii, whole.radii, 0)
    alone = receptive_fields(vit, x, layers[-1], method=method, projections=20)
    assert_close(alone.maps[0], whole.maps[-1], FLOAT64)
    assert alone.layers == ("blocks.1",)
    assert whole.patch == 8
    assert whole.centre_shares.shape == whole.radii.shape == (4, 5)
    if method == "projection":
        other = receptive_fields(vit, x, layers, method=method, projections=20, seed=1)
        assert (other.maps != whole.maps).any()


def preactivated():
    return ResNetV2((1, 1), (16, 32), num_classes=2, stem_chs=8, norm_layer=BatchNormAct2d)


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("resnet50"),
        preactivated,
    ],
    ids=["resnet18", "resnet50", "preactivated"],
)
def test_what_is_overwritten_in_place_afterwards_has_its_own_gradient(make):
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    taps = list(dict.fromkeys([*before_residual(model)[:2], *map(Tap, norms[:3])]))
    x = noise(1, 3, 32, 32)
    found = fields(model, x, taps, "sum", patch=8)
    kept = []
    for module in model.modules():  # the same network without any operation in place
        if getattr(module, "inplace", False):
            module.inplace = False
    for one, tap in zip(found.maps, taps, strict=True):
        inputs = x.clone().requires_grad_()

        class Seen(Exception):
            pass

        def stop(module, args, output):
            kept.append(output)
            raise Seen

        handle = model.get_submodule(tap.pattern).register_forward_hook(stop)
        with pytest.raises(Seen):
            model(inputs)
        handle.remove()
        y = kept.pop()
        centre = y[0, :, y.shape[2] // 2, y.shape[3] // 2]
        (gradient,) = torch.autograd.grad(centre.sum(), inputs)
        expected = gradient[0].double().abs().mean(0) / len(centre)
        assert_close(one, expected, 1e-6 * expected.max().item())


def state(model):
    return [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ] + [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]


def test_the_network_is_left_as_it_came_also_after_an_error():
    model = timm.create_model("resnet18").train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    buffers = [b.clone() for b in model.buffers()]
    before = state(model)
    x = noise(2, 3, 32, 32)
    with torch.no_grad():
        fields(model, x, after_residual(model), "sum", patch=8)
    assert state(model) == before
    for broken in ([Tap("fc")], [Tap("layer1", call=2)], [Tap("global_pool")]):
        with pytest.raises(ValueError, match="`layers` must be"):
            fields(model, x, broken, "sum", patch=8)
        assert state(model) == before
    with pytest.raises(RuntimeError):
        fields(model, noise(2, 5, 32, 32), "layer1", "sum", patch=8)
    assert state(model) == before
    assert not x.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


def test_it_works_where_gradients_are_off():
    net = convolutions(2)
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    expected = fields(net, x, "1").maps
    with torch.inference_mode():
        assert_close(fields(net, torch.ones_like(x), "1").maps, expected, FLOAT64)


def test_fused_attention_gives_what_unfused_gives():
    vit = trained_vit()
    x = noise(2, 3, 64, 64)
    layers = [Tap("blocks.2.attn"), Tap("blocks.7")]
    fused = receptive_fields(vit, x, layers, projections=4)
    assert all(block.attn.fused_attn for block in vit.blocks)
    for block in vit.blocks:
        block.attn.fused_attn = False
    plain = receptive_fields(vit, x, layers, projections=4)
    assert_close(fused.maps, plain.maps, 1e-4 * plain.maps.max().item())


@pytest.mark.gpu
def test_a_gpu_gives_what_a_processor_gives(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    vit, x = trained_vit(), noise(3, 3, 64, 64)
    layers = [*after_residual(vit), *before_residual(vit)]
    expected = receptive_fields(vit, x, layers)
    found = receptive_fields(vit.cuda(), x, layers)
    assert found.maps.device.type == "cpu"
    scale = expected.maps.amax((1, 2), True)
    assert_close(found.maps / scale, expected.maps / scale, 1e-3)


def test_a_sum_of_channels_says_nothing_behind_a_layer_norm():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8)).double()
    x = noise(1, 3, 3, 3, dtype=torch.float64)  # one position, so that the norm is over channels
    assert fields(net, x, "1", "sum").maps.max() < 1e-12 < fields(net, x, "1").maps.min()


def test_a_network_that_writes_on_its_input_leaves_the_images_alone():
    net = nn.Sequential(nn.ReLU(True), nn.Conv2d(1, 1, 3, padding=1)).double()
    x = noise(1, 1, 6, 6, dtype=torch.float64)
    before = x.clone()
    one = fields(net, x, "1").maps[0]
    assert torch.equal(x, before)
    assert torch.equal(one > 0, (x[0, 0] > 0) & (one > 0))


# Families

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"depths": (1, 1), "embed_dim": 8, "num_heads": (1, 2)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}

# name, options, layers after and before the addition
FAMILIES = [
    ("vit_tiny_patch16_224", SMALL, 4, 4),
    ("vit_tiny_patch16_224", SMALL | {"class_token": False, "global_pool": "avg"}, 4, 4),
    ("deit_tiny_distilled_patch16_224", SMALL, 4, 4),
    ("deit3_small_patch16_224", SMALL, 4, 4),
    ("vit_base_patch16_clip_224", SMALL, 4, 4),
    ("vit_small_patch14_reg4_dinov2", SMALL, 4, 4),
    ("eva02_tiny_patch14_224", SMALL, 4, 4),
    ("vit_small_patch16_dinov3", SMALL, 4, 4),
    ("beit_base_patch16_224", SMALL, 4, 4),
    ("swin_tiny_patch4_window7_224", SWIN | {"img_size": 56}, 4, 4),
    ("mvitv2_tiny", {"img_size": 64}, 20, 20),
    ("resnet18", {}, 9, 8),
    ("seresnet18", {}, 9, 8),
    ("resnetv2_18", {}, 9, 8),
    ("resnetv2_50x1_bit", {}, 17, 16),
    ("convnext_atto", CONVNEXT, 5, 4),
    ("fastcka_vit_mini", {}, 16, 16),
    ("fastcka_mixer_mini", {}, 16, 16),
    ("fastcka_resnet_mini", {}, 9, 8),
]


def create(name, options):
    fastcka.models.load("fastcka_vit_mini")  # the small networks are registered
    return timm.create_model(name, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "after", "before"), FAMILIES)
def test_families(name, options, after, before):
    model = create(name, options)
    size = options.get("img_size", 64)
    x = noise(1, 3, size, size)
    taps = after_residual(model), before_residual(model)
    assert tuple(map(len, taps)) == (after, before)
    found = fields(model, x, taps[0], "projection", patch=8, projections=2)
    assert list(found.layers) == list(dict.fromkeys(found.layers))
    assert (found.maps.sum((1, 2)) > 0).all()
    assert ((found.centres - size / 2).abs() <= size / 4).all()
    if name.startswith("vit"):
        # Before the addition, attention depends less on its own patch.
        other = fields(model, x, taps[1], "projection", patch=8, projections=2)
        assert (other.centre_shares[::2] < found.centre_shares[::2]).all()


def test_places_of_families():
    def names(function, model):
        return [f"{t.pattern} {t.side}{t.call or ''}" for t in function(model)]

    with torch.device("meta"):
        mixer = create("fastcka_mixer_mini", {})
        resnet = timm.create_model("resnet50")
        bit = timm.create_model("resnetv2_50x1_bit")
        swin = timm.create_model("swin_tiny_patch4_window7_224")
        regnet = timm.create_model("regnety_002")
    assert names(before_residual, mixer)[:2] == [
        "blocks.0.drop_path output1",
        "blocks.0.drop_path output2",
    ]
    assert names(after_residual, resnet)[:2] == ["conv1 output", "layer1.0 output"]
    assert names(before_residual, resnet)[0] == "layer1.0.bn3 output"
    assert names(after_residual, bit)[0] == "stem.conv output"
    assert names(before_residual, bit)[0] == "stages.0.blocks.0.conv3 output"
    assert names(before_residual, swin)[:2] == [
        "layers.0.blocks.0.drop_path1 output",
        "layers.0.blocks.0.mlp output",
    ]
    assert (
        names(before_residual, regnet)[0] == "s1.b1.conv3 output"
    )  # not its `se`, which is inside


REFUSED = [
    ("densenet121", "must be made of .* DenseNet is not, its 'features.*' is none of these"),
    ("xcit_nano_12_p16_224", "Xcit is not"),
    ("swinv2_tiny_window8_256", "'layers.0.blocks.0' of SwinTransformerV2 normalises behind them"),
    ("vit_base_patch16_rpn_224", "VisionTransformer normalises behind"),
    ("hiera_tiny_224", "must keep its tokens in the order of the image, but Hiera moves them"),
]


@pytest.mark.parametrize(("name", "says"), REFUSED)
@pytest.mark.parametrize("function", [after_residual, before_residual])
def test_families_it_does_not_apply_to(function, name, says):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=says):
        function(model)


def test_one_block_is_a_network_and_none_is_not():
    assert (
        len(after_residual(timm.create_model("vit_tiny_patch16_224", **SMALL | {"depth": 1}))) == 2
    )
    with pytest.raises(ValueError, match=r"Sequential is not, there are none; name the layers as"):
        after_residual(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))


# Refusals

net, x = convolutions(1, 2, 3), torch.ones(2, 3, 8, 8, dtype=torch.float64)


class Detached(nn.Sequential):
    def forward(self, x):
        return super().forward(x.detach())


def no_count():
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=4, depth=1, num_heads=1).double()
    del vit.num_prefix_tokens
    return vit


def one_before():
    mixing = Mixing(0.5, 1).double()
    mixing.num_prefix_tokens = 1
    return mixing


def moved():
    hiera = Mixing(0.5, 1).double()
    hiera.unroll = nn.Identity()
    return hiera


f, wrong, strange = fields, ValueError, TypeError


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: f(net, x.long(), "0"), strange, "floating tensor, but is torch.int64"),
        (lambda: f(net, [x], "0"), strange, "must be a floating tensor, but is list"),
        (lambda: f(net, x[0], "0"), wrong, "`images` must be [n, channels, height"),
        (lambda: f(net, x, "0", "vjp"), wrong, "one of projection, exact, sum, but is 'vjp'"),
        (lambda: f(net, x, "0", projections=0), wrong, "`projections` must be a whole number"),
        (lambda: f(net, x, "0", batch=1.5), wrong, "`batch` must be a whole number from 1 on"),
        (lambda: f(net, x, "0", patch=3), wrong, "divides the 8 by 8 of the map, but is 3"),
        (lambda: f(net, x, "0", patch=None), wrong, "`patch` must be given"),
        (lambda: f(net, x, "9"), wrong, "'9'"),
        (lambda: f(net, x, Tap("0", select=slice(1))), wrong, "whole activations, but '0[:1]'"),
        (lambda: f(net, x, Tap("0", call=2)), wrong, "in a forward pass, but '0#2' is"),
        (lambda: f(Detached(*net), x, "0"), wrong, "the network detaches what comes before"),
        (lambda: f(nn.Sequential(net, nn.Flatten()), x, "1"), wrong, "before the pooling"),
        (lambda: f(nn.Sequential(net, nn.Flatten(0)), x, "1"), wrong, "of the 32 images that"),
        (lambda: f(no_count(), torch.ones(1, 3, 32, 32).double(), "blocks.0"), wrong,
         "does not say how many tokens come before the patches"),
        (lambda: f(moved(), x, "layers.0"), wrong, "moves its tokens out of the order"),
        (lambda: f(one_before(), torch.ones(1, 3, 16, 16).double(), "layers.0"),
         wrong, "as the image, 16 by 16, but 'layers.0' has 15 patches after 1 others"),
        (lambda: mass_radius(x, (1, 1), 0), wrong, "`share` must be above 0 and at most 1"),
        (lambda: mass_radius(x, 3), wrong, "`centre` must be (row, column)"),
        (lambda: axis_variance(x[0, 0, 0]), wrong, "`maps` must be [..., height, width]"),
        (lambda: patch_masses(x.int(), 2), strange, "`maps` must be a floating tensor"),
        (lambda: patch_masses(x, 2.5), wrong, "`patch` must be a number of pixels"),
    ],
)  # fmt: skip
def test_refusals(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_centre_of_maps_with_channels_last():
    maps = torch.arange(2 * 4 * 6 * 3.0).view(2, 4, 6, 3)
    last = {"": nn.Linear(3, 3)}
    assert torch.equal(centre_cell(maps, "", last, (8, 12)).values, maps[:, 2, 3])
    first = {"": nn.Conv2d(3, 3, 1)}
    found = centre_cell(maps.permute(0, 3, 1, 2), "", first, (8, 12))
    assert torch.equal(found.values, maps[:, 2, 3])
    assert (found.row, found.column) == (4.5, 6.5)
