"""Which patch a token is like: closed forms on white noise, measured as CKA is measured."""

import math
import re

import numpy as np
import pytest
import timm
import torch
from tolerance import assert_close
from torch import nn

import fastcka
from fastcka.analysis.localisation import (
    PixelPatches,
    localisation,
    patches,
    token_taps,
)
from fastcka.maths import localisation as definition

GRID = 3
SIDE = 2  # pixels of a patch
WIDTH = 3 * SIDE**2
N, BATCHES = 256, 12
FLOOR = 4 * math.sqrt(2) / (N * math.sqrt(BATCHES))


def noise(batches, n, height, width=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, height, width or height, generator=g) for _ in range(batches)]


class Embedding(nn.Module):
    """W of every patch, of which each token then takes a share alpha of the mean of all."""

    def __init__(self, w, alpha=0.0, grid=GRID):
        super().__init__()
        self.w, self.alpha, self.grid = nn.Parameter(w), alpha, grid
        self.out = nn.Identity()

    def forward(self, images):
        tokens = patches(images, self.grid) @ self.w.T
        return self.out((1 - self.alpha) * tokens + self.alpha * tokens.mean(1, keepdim=True))


def measured(model, layer, grid, batches):
    """CKA of tokens x patches, and its standard errors."""
    pixels = PixelPatches(grid)
    result = fastcka.compare_many(
        {"tokens": model, "patches": pixels},
        batches,
        layers={"tokens": token_taps(model, layer, grid), "patches": pixels.layers},
        progress=False,
    )["tokens", "patches"]
    return result.cka, result.stderr


def embeddings():
    g = torch.Generator().manual_seed(1)
    random = torch.randn(6, WIDTH, generator=g)
    yield "orthonormal", torch.linalg.qr(random.T)[0].T, math.sqrt(6 / WIDTH)
    yield "Gaussian", random, definition.own_patch(random)


@pytest.mark.parametrize(
    ("w", "own"), [pytest.param(w, own, id=name) for name, w, own in embeddings()]
)
def test_a_linear_embedding_is_like_its_own_patch_as_far_as_it_keeps_it(w, own):
    found, errors = measured(Embedding(w), "out", GRID, noise(BATCHES, N, GRID * SIDE))
    diagonal = np.eye(GRID**2, dtype=bool)
    assert np.abs(found[diagonal] - own).max() < 5 * errors[diagonal].max()
    assert errors[diagonal].max() < 0.01
    assert np.abs(found[~diagonal]).max() < FLOOR
    summed = localisation(found, GRID)
    assert summed["all"].peaks == summed["interior"].peaks == summed["border"].peaks == 1
    assert abs(summed["all"].contrast - own) < 0.01


@pytest.mark.parametrize("alpha", [0.3, 0.7, 1.0])
def test_mixing_tokens_moves_them_to_each_other(alpha):
    own, other = definition.mixed(alpha, GRID**2)
    batches = noise(BATCHES, N, GRID * SIDE)
    found, errors = measured(Embedding(torch.eye(WIDTH), alpha), "out", GRID, batches)
    expected = np.full((GRID**2, GRID**2), other)
    np.fill_diagonal(expected, own)
    assert (np.abs(found - expected) < 5 * errors + FLOOR).all()
    if alpha == 1:
        assert own == other == 1 / GRID**2
        assert localisation(found, GRID)["all"].contrast < 0.01


def test_the_definitions_are_the_cka_of_covariances():
    rng = np.random.default_rng(0)
    w, n = rng.standard_normal((4, 6)), 5
    here = np.eye(n)[[2]]
    assert_close(definition.own_patch(w), definition.population_cka(w, np.eye(6)), 1e-15)
    for alpha in (0.0, 0.4, 1.0):
        mixing = (1 - alpha) * here + alpha / n
        token = np.kron(mixing, w)
        for place, expected in zip((2, 4), definition.mixed(alpha, n), strict=True):
            patch = np.kron(np.eye(n)[[place]], np.eye(6))
            whole = expected * definition.own_patch(w)
            assert_close(definition.population_cka(token, patch), whole, 1e-14)
    wide = rng.standard_normal((200, 300))
    assert abs(definition.own_patch(wide) / definition.own_patch_of_random(200, 300) - 1) < 0.01


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((32, 32), {}),
        ((32, 32), {"reg_tokens": 3}),
        ((32, 32), {"class_token": False, "global_pool": "avg"}),
        ((16, 40), {}),
    ],
    ids=["square", "registers", "no class token", "not square"],
)
def test_tokens_of_an_untrained_vit_stay_at_their_patch_to_the_last_block(size, options):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=8, embed_dim=48, num_heads=3, depth=4,
        **options,
    )  # fmt: skip
    grid = (size[0] // 8, size[1] // 8)
    found, _ = measured(model, "blocks.3", grid, noise(4, 128, *size))
    summed = localisation(found, grid)["all"]
    assert summed.peaks == 1
    assert summed.own > 0.1
    assert abs(summed.others) < 0.01


FAMILIES = {
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 2}, "blocks.1", 2),
    "deit3": ("deit3_small_patch16_224", {"img_size": 32, "depth": 2}, "blocks.1", 2),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2}, "blocks.1", 2),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "depths": (2, 2), "num_heads": (1, 2), "embed_dim": 24, "window_size": 2},
        "layers.1.blocks.1",
        4,
    ),
    "mvit": ("mvitv2_tiny", {"img_size": 64}, "stages.3.blocks.1", 2),
    "mixer": ("mixer_s32_224", {"img_size": 64}, "blocks.1", 2),
    "resnet": ("resnet18", {}, "layer1.1", 16),
    "bit": ("resnetv2_50x1_bit", {}, "stages.0.blocks.1", 16),
    "convnext": ("convnext_atto", {}, "stages.3.blocks.1", 2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_every_family_are_at_their_place(family):
    """Noise at the bottom left alone, neither transposed nor reversed, moves tokens there most."""
    name, options, layer, grid = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    side = options.get("img_size", 64)
    step = side // grid
    image = torch.zeros(2, 3, side, side)
    image[1, :, side - step :, :step] = torch.randn(3, step, step)
    moved = {}
    capture = fastcka.capture.Capture(model, token_taps(model, layer, grid))
    with torch.no_grad():
        capture.run(
            lambda m: m(image), 2, lambda name, x: moved.update({name: x.diff(dim=0).norm()})
        )
    values = torch.stack([moved[name] for name in capture.layers])
    assert len(values) == grid * grid
    row, column = divmod(int(values.argmax()), grid)
    assert row >= grid // 2
    assert column < grid // 2


def test_the_order_of_hiera_is_refused():
    model = timm.create_model("hiera_tiny_224", img_size=64, stages=(1, 1, 1, 1))
    with pytest.raises(
        ValueError, match="`model` is a Hiera, whose tokens are in the order of its"
    ):
        token_taps(model, "blocks.3", 2)


def test_patches_are_cut_row_by_row_and_keep_every_pixel():
    images = torch.randn(2, 3, 4, 12)
    cut = patches(images, (2, 3))
    assert cut.shape == (2, 6, 24)
    assert cut[:, 4].equal(images[:, :, 2:, 4:8].flatten(1))
    assert cut.flatten().sort().values.equal(images.flatten().sort().values)


def test_pixel_patches_returns_what_it_is_given_and_shows_its_patches():
    images, shown = torch.randn(5, 3, 4, 6), {}
    pixels = PixelPatches((2, 3))
    capture = fastcka.capture.Capture(pixels, pixels.layers)
    out = capture.run(lambda m: m(images), 5, lambda name, x: shown.update({name: x.clone()}))
    assert out is images
    assert capture.layers == tuple(pixels.layers)
    assert list(shown)[:4] == ["cells.0.0", "cells.0.1", "cells.0.2", "cells.1.0"]
    assert torch.stack(list(shown.values()), 1).equal(patches(images, (2, 3)))


def test_a_table_is_summed_up_for_all_interior_and_border_tokens():
    table = np.full((12, 12), 0.1)
    np.fill_diagonal(table, 0.5)
    table[0] = 0.2  # flat: no peak
    table[5, 6] = 0.9  # the interior tokens of 3 x 4 are 5 and 6
    found = localisation(table, (3, 4))
    assert {name: one.tokens for name, one in found.items()} == {
        "all": 12,
        "interior": 2,
        "border": 10,
    }
    assert found["interior"].peaks == 0.5
    assert found["border"].peaks == 0.9
    assert found["all"].peaks == pytest.approx(10 / 12)
    assert found["interior"].own == 0.5
    assert found["interior"].others == pytest.approx((0.1 * 21 + 0.9) / 22)
    assert found["interior"].contrast == pytest.approx(0.5 - (0.1 * 21 + 0.9) / 22)


def test_a_grid_without_interior_and_a_layer_without_value_are_nan():
    found = localisation(np.eye(4), 2)
    assert found["interior"].tokens == 0
    assert math.isnan(found["interior"].peaks)
    table = np.eye(9)
    table[0] = np.nan
    found = localisation(table, 3)
    assert math.isnan(found["border"].peaks)
    assert math.isnan(found["all"].own)
    assert found["interior"].peaks == 1


vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)

REFUSALS = [
    (lambda: localisation(np.eye(9), 2),
     "`table` must be [tokens, patches] of a grid of 2 x 2, at least 2, but is [9, 9]"),
    (lambda: localisation(np.eye(1), 1), "at least 2, but is [1, 1]"),
    (lambda: patches(torch.zeros(1, 3, 5, 4), 2),
     "that a grid of 2 x 2 divides, but is [1, 3, 5, 4]"),
    (lambda: PixelPatches((1, 2, 3)), "`grid` must be rows and columns, numbers above 0, but is"),
    (lambda: PixelPatches(0), "numbers above 0, but is 0"),
    (lambda: token_taps(vit, "blocks.7", 2),
     "`layer` must be the name of a module of the network, but is 'blocks.7'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), REFUSALS)
def test_refusals_say_what_was_expected_and_what_came(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.parametrize(
    ("model", "layer", "text"),
    [
        (vit, "blocks.0", "its tokens are no grid of 3 x 3; its shape is [4, 5, 192]"),
        (
            nn.Sequential(nn.Conv2d(3, 4, (32, 24))),
            "0",
            "no grid of 3 x 3; its shape is [4, 4, 1, 9]",
        ),
        (vit, "head", "it has no tokens or positions"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3)),
            "0",
            "are no grid of 3 x 3; its shape is [4, 4, 30, 30]",
        ),
    ],
)
def test_a_layer_of_another_grid_is_refused_when_it_is_seen(model, layer, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        fastcka.compare(
            model, data=noise(1, 4, 32), layers_a=token_taps(model, layer, 3), progress=False
        )
