"""Experiments on tokens, heads and branches: planted networks, real ones, and which families do."""

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.signal import convolve2d
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fastcka import data
from fastcka.experiments import (
    attention_distance,
    local_heads,
    receptive_fields,
    skip_connections,
)
from fastcka.experiments.attention_distance import LESS_NEAR, OF_DEPTH
from fastcka.experiments.registry import experiments
from fastcka.experiments.runner.claims import FAILS, HOLDS, UNTESTED
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.study import DONE, LEFT_OUT, Study
from fastcka.experiments.runner.subjects import (
    CNN,
    MIXER,
    OTHER,
    TRANSFORMER,
    Subject,
    Subjects,
    Variant,
)
from fastcka.models import Network, small
from fastcka.report.saving import save

EVERY = {
    "attention_distance": attention_distance,
    "local_heads": local_heads,
    "receptive_fields": receptive_fields,
    "skip_connections": skip_connections,
}
# Weights in float32: a softmax over 16 keys, and distances summed over as many.
WEIGHTS = 1e-6
# A forward pass in float32 and what is measured of it.
FLOAT32 = 1e-5
# CKA of 512 white images of 192 pixels in batches of 64: the products of 16 000 pairs, which have
# the relative error √2/√16 000 = 0.011 that numerator and denominator largely share.
SAMPLED = 0.01
SIDE, PATCH = 8, 2
TOKENS, WIDTH = (SIDE // PATCH) ** 2, 3 * PATCH**2


def subject(name, module, side, variant=None):
    config = {
        "input_size": (3, side, side),
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
    }
    about = {"architecture": name, "weights": name}
    return Subject(name, Network(name, module.eval(), config, about), variant)


def run(subjects, images, folder, names=tuple(EVERY), **options):
    sample = Sample(images, **{"count": 16, "n": 8, "batch_size": 8, "fields": 2} | options)
    study = Study(Subjects(subjects), sample, folder, progress=False)
    return study.run({name: EVERY[name] for name in names})


def result_of(outcomes, name):
    outcome = outcomes[name]
    assert not outcome.trace, outcome.trace
    assert outcome.status == DONE, outcome.why
    return outcome.result


def verdicts(result, claim, of=None):
    return [v for v in result.verdicts if v.claim == claim and of in (None, v.of)]


def verdict(result, claim, of=None):
    (one,) = verdicts(result, claim, of)
    return one


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(data.write_images(tmp_path_factory.mktemp("images"), 32, size=32))


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Images of independent pixels, and as large as planted networks take them."""
    folder = tmp_path_factory.mktemp("noise")
    pixels = np.random.default_rng(0).integers(0, 256, (512, SIDE, SIDE, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{number:04}.png")
    return str(folder)


# --- planted networks


class Heads(nn.Module):
    """Attention (1 - a)I + aJ/N in each head, whatever the tokens; their values as they are."""

    def __init__(self, shares):
        super().__init__()
        self.num_heads = len(shares)
        self.v, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(len(shares) * WIDTH, WIDTH)
        share = torch.tensor(shares)[:, None, None]
        weights = (1 - share) * torch.eye(TOKENS) + share / TOKENS
        self.register_buffer("logits", weights.log().clamp(min=-1e4))

    def forward(self, x):
        nothing = torch.zeros(len(x), self.num_heads, TOKENS, 1)
        values = x[:, None].expand(-1, self.num_heads, -1, -1)
        y = nn.functional.scaled_dot_product_attention(nothing, nothing, values, self.logits)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, shares):
        super().__init__()
        self.attn = Heads(shares)

    def forward(self, x):
        return x + 0 * self.attn(x)


class Looking(nn.Module):
    """A network of patches that are tokens as they are, with such heads in each block."""

    num_prefix_tokens = 0

    def __init__(self, *blocks):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = patches()
        self.blocks = nn.ModuleList(Block(shares) for shares in blocks)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return x


def patches(side=PATCH):
    """A convolution that hands on the pixels of each patch."""
    width = 3 * side**2
    conv = nn.Conv2d(3, width, side, stride=side, bias=False)
    conv.weight.data = torch.eye(width).view(width, 3, side, side)
    return conv


class Convolving(nn.Module):
    """A block of a ResNet without its skip connection: a mean over 3 x 3 pixels, or 1 x 1."""

    def __init__(self, size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.conv2 = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        seen = slice(None) if size == 3 else slice(1, 2)
        self.conv1.weight.data.zero_()[..., seen, seen] = 1 / size**2
        self.conv2.weight.data.fill_(1)
        self.downsample = None

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Pixels(nn.Module):
    def __init__(self, blocks, size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        self.conv1.weight.data.fill_(1)
        self.layer1 = nn.Sequential(*(Convolving(size) for _ in range(blocks)))

    def forward(self, x):
        return self.layer1(self.conv1(x))


class Branch(nn.Module):
    """Has weights, as branches of blocks have, and does without them."""

    num_heads = 1

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(1, 1)


class Pull(Branch):
    """A branch a(Jx/N - x): added to x, it is attention (1 - a)I + aJ/N."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x, **options):
        return self.share * (x.mean(1, keepdim=True) - x)


class Turn(Branch):
    """A branch c R x, R a quarter-turn; c of the class token, and of the patches."""

    def __init__(self, of_class, of_patches):
        super().__init__()
        self.scales = of_class, of_patches

    def forward(self, x, **options):
        of_class, of_patches = self.scales
        scale = torch.full((x.shape[1], 1), of_patches)
        scale[0] = of_class
        one, other = x.chunk(2, -1)
        return scale * torch.cat([-other, one], -1)


class Zero(Branch):
    def forward(self, x):
        return 0 * x


def vit(attention, mlp, *, side, patch, depth=4, **options):
    """timm's, with other branches and without norms."""
    module = VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=3 * patch**2,
        depth=depth,
        num_heads=1,
        **options,
    )
    module.patch_embed.proj = patches(patch)
    module.pos_embed.data.zero_()
    for number, block in enumerate(module.blocks):
        block.norm1, block.norm2 = nn.Identity(), nn.Identity()
        block.attn, block.mlp = attention(number), mlp(number)
    return module


# --- E3, E4: attention distance

LOW, HIGH = (0.2, 0.9, 0.5), (0.8, 0.9, 1.0)


def test_distances_are_the_shares_that_were_planted(noise, tmp_path):
    planted = (LOW, (0.1, 0.6, 0.7), HIGH, (0.95, 0.85, 0.9))
    full = subject("full", Looking(*planted), SIDE)
    less = subject("less", Looking((0.3, 0.9, 0.5), (0.4,) * 3, HIGH, HIGH), SIDE,
                   Variant("less-data", "full", 10))  # fmt: skip
    result = result_of(
        run([full, less], noise, tmp_path, ["attention_distance"]), "attention_distance"
    )
    np.testing.assert_allclose(result.arrays["share/full"], planted, atol=WEIGHTS)
    np.testing.assert_allclose(result.arrays["stderr/full"], 0, atol=WEIGHTS)
    uniform = result.arrays["uniform_pixels/full"][:, None]
    np.testing.assert_allclose(result.arrays["pixels/full"], planted * uniform, atol=1e-5)
    spread, near, far, above = (verdict(result, claim, "full") for claim in OF_DEPTH)
    assert spread.measured == pytest.approx(0.6, abs=WEIGHTS)  # of the second block
    assert near.measured == pytest.approx(0.2, abs=WEIGHTS)
    assert far.measured == pytest.approx(0.8, abs=WEIGHTS)
    assert above.measured == pytest.approx(0.9 - 0.5, abs=WEIGHTS)
    assert {v.verdict for v in (spread, near, far, above)} == {HOLDS}
    nearer = verdict(result, LESS_NEAR)
    assert (nearer.of, nearer.verdict) == ("less", HOLDS)
    assert nearer.measured == pytest.approx(0.3 - 0.1, abs=WEIGHTS)


def test_a_network_upside_down_contradicts_the_claims(noise, tmp_path):
    one = subject("vit", Looking(HIGH, HIGH, LOW, LOW), SIDE)
    result = result_of(run([one], noise, tmp_path, ["attention_distance"]), "attention_distance")
    found = [verdict(result, claim).verdict for claim in (*OF_DEPTH, LESS_NEAR)]
    assert found == [FAILS, FAILS, FAILS, FAILS, UNTESTED]


def test_few_blocks_and_single_heads_are_told():
    seen = attention_distance.Distances((), np.ones((3, 2)), np.zeros((3, 2)), np.ones(3))
    told = attention_distance._by_depth("vit", seen)
    assert len(told) == 4
    assert {v.verdict for v in told} == {UNTESTED}
    assert told[0].why.startswith("it has 3 attention layers")
    single = attention_distance.Distances((), np.ones((4, 1)), np.zeros((4, 1)), np.ones(4))
    assert attention_distance._by_depth("vit", single)[0].why.endswith("a single head")


# --- E5: heads beside a CNN


def closed_form(shares):
    """CKA of heads (1 - a)I + aJ/N side by side with the tokens themselves, all of them white."""
    kept = sum((1 - share) ** 2 for share in shares)
    count = len(shares)
    return (count + (TOKENS - 1) * kept) / math.sqrt(TOKENS * (count**2 + (TOKENS - 1) * kept**2))


def test_windows_of_heads_have_the_cka_of_their_distances(noise, tmp_path):
    shares = (0.9, 0.3, 0.7, 0.1, 1.0, 0.5, 0.8, 0.6)
    heads = subject("vit", Looking(shares, shares), SIDE)
    cnn = subject("cnn", Pixels(4, size=1), SIDE)
    outcomes = run([heads, cnn], noise, tmp_path, ["local_heads"],
                   count=512, n=64, batch_size=64)  # fmt: skip
    result = result_of(outcomes, "local_heads")
    order = sorted(shares)
    groups = [order[first : first + 2] for first in range(7)]
    np.testing.assert_allclose(result.arrays["distance/vit"], np.mean(groups, 1), atol=WEIGHTS)
    expected = [closed_form(group) for group in groups]
    for column in result.arrays["cka/vit, cnn"].T:
        np.testing.assert_allclose(column, expected, atol=SAMPLED)
    assert result.facts["k"] == {"vit": 2}
    assert [v.measured for v in result.verdicts] == [-1, -1]
    assert result.verdicts[0].of == "vit, cnn layer1.0, 7 groups of 2 of 8 heads"
    assert {v.verdict for v in result.verdicts} == {HOLDS}


def test_a_correlation_of_ranks_at_the_threshold_holds():
    told = local_heads._verdict("", np.arange(5.0), np.array([4.0, 5.0, 2.0, 3.0, 1.0]), 8)
    assert (told.measured, told.verdict) == (-0.8, HOLDS)
    few = local_heads._verdict("", np.arange(3.0), np.arange(3.0), 3)
    assert (few.verdict, few.why) == (UNTESTED, "3 heads make 3 groups, fewer than 4")
    assert local_heads._verdict("", np.arange(5.0), np.ones(5), 8).verdict == UNTESTED


# --- E6, E7: receptive fields


def test_fields_of_convolutions_grow_as_they_must(noise, tmp_path):
    cnn = subject("cnn", Pixels(3, size=3), SIDE)
    result = result_of(run([cnn], noise, tmp_path, ["receptive_fields"]), "receptive_fields")
    field, radii, shares = np.zeros((SIDE, SIDE)), [], []
    field[4, 4] = 1
    distance = np.hypot(*(np.indices((SIDE, SIDE)) - 4))
    for _ in range(4):
        order = np.argsort(distance, axis=None, kind="stable")
        held = np.cumsum(field.ravel()[order])
        radii.append(distance.ravel()[order][np.argmax(held >= held[-1] / 2 - 1e-9)] / SIDE)
        shares.append(field[4, 4] / field.sum())
        found = result.arrays["maps/after/cnn"][len(radii) - 1]
        np.testing.assert_allclose(found / found.sum(), field / field.sum(), atol=FLOAT32)
        field = convolve2d(field, np.full((3, 3), 1 / 9), mode="same")
    np.testing.assert_allclose(result.arrays["radius/after/cnn"], radii, atol=FLOAT32)
    np.testing.assert_allclose(result.arrays["centre/after/cnn"], shares, atol=FLOAT32)
    grows = verdict(result, receptive_fields.GROWS)
    assert grows.measured == pytest.approx(min(np.diff(radii)), abs=FLOAT32)
    assert grows.verdict == HOLDS
    for claim in receptive_fields.CLAIMS[1:]:
        assert verdict(result, claim).verdict == UNTESTED


def test_what_attention_leaves_to_the_middle_patch(noise, tmp_path):
    share, side, patch, count = 0.1, 16, 4, 16
    module = vit(lambda number: Pull(share), lambda number: Zero(), side=side, patch=patch,
                 class_token=False, global_pool="avg")  # fmt: skip
    cnn = subject("cnn", Pixels(3, size=1), side)
    outcomes = run([subject("vit", module, side), cnn], noise, tmp_path, ["receptive_fields"])
    result = result_of(outcomes, "receptive_fields")
    kept = (1 - share) ** np.arange(1, 5)
    centre = kept + (1 - kept) / count
    np.testing.assert_allclose(
        result.arrays["centre/after/vit"], np.repeat(centre, 2), atol=FLOAT32
    )
    # Before the addition the patch itself weighs as much as all others.
    np.testing.assert_allclose(result.arrays["centre/before/vit"][::2], 0.5, atol=FLOAT32)
    largest = verdict(result, receptive_fields.CENTRE_LARGEST)
    other = (1 - centre[-1]) / (count - 1)
    assert largest.measured == pytest.approx(centre[-1] / other, rel=1e-4)
    away = verdict(result, receptive_fields.ATTENTION_LOOKS_AWAY)
    assert away.measured == pytest.approx(centre[-1] - 0.5, abs=FLOAT32)
    assert (largest.verdict, away.verdict) == (HOLDS, HOLDS)
    # A branch that is 0 has no field, and the figures do without it.
    assert np.isnan(result.arrays["centre/before/vit"][1::2]).all()
    assert receptive_fields.plot(result)
    assert result.facts["patch"] == {"vit": patch, "cnn": patch}
    larger = verdict(result, receptive_fields.LARGER)
    assert larger.of == "vit, cnn"
    assert larger.measured > 0


def test_a_layer_that_depends_on_no_pixel_leaves_claims_untested_with_the_reason(noise, tmp_path):
    module = Pixels(3, size=3)
    module.layer1[1].conv2.weight.data.zero_()
    cnn = subject("cnn", module, SIDE)
    result = result_of(run([cnn], noise, tmp_path, ["receptive_fields"]), "receptive_fields")
    grows = verdict(result, receptive_fields.GROWS)
    assert (grows.verdict, grows.why) == (UNTESTED, receptive_fields.NO_FIELD)
    assert np.isnan(receptive_fields._least(np.empty((0, 2)))[0])
    assert np.isnan(receptive_fields.centre_to_others(np.ones((1, 1, 1))))
    assert np.isnan(receptive_fields.centre_to_others(np.eye(9)[4].reshape(1, 3, 3)))


@pytest.mark.parametrize(("sides", "patch"), [((32, 48), 4), ((24, 28), 2), ((64, 64), 8)])
def test_patches_of_a_cnn_divide_both_sides_of_the_image(sides, patch):
    one = subject("cnn", Pixels(2, size=3), SIDE)
    one.network.data_config["input_size"] = (3, *sides)
    subjects = Subjects([one])
    assert receptive_fields._patch(one, subjects) == patch


# --- E8, E9: skip connections


def test_ratios_and_cosines_are_those_that_were_planted(noise, tmp_path):
    scales = [(0.1, 1.0), (0.2, 0.8), (1.0, 0.1), (0.5, 0.2)]

    def turn(number):
        return Turn(*scales[number])

    module = vit(turn, turn, side=SIDE, patch=PATCH)
    module.cls_token.data.normal_(generator=torch.Generator().manual_seed(0))
    cnn = subject("cnn", ResNet(BasicBlock, (1,) * 4, channels=(4,) * 4), SIDE)
    outcomes = run([subject("vit", module, SIDE), cnn], noise, tmp_path, ["skip_connections"])
    result = result_of(outcomes, "skip_connections")
    c = np.repeat(np.array(scales), 2, 0)
    found = result.arrays["tokens/norm_ratio/vit"]
    np.testing.assert_allclose(found[:, 0], 1 / c[:, 0], rtol=FLOAT32)
    np.testing.assert_allclose(found[:, 1:], np.tile(1 / c[:, 1:], TOKENS), rtol=FLOAT32)
    np.testing.assert_allclose(result.arrays["patches/norm_ratio/vit"], 1 / c[:, 1], rtol=FLOAT32)
    for measure, expected in (
        ("cos_skip_total", 1 / np.sqrt(1 + c**2)),
        ("cos_skip_branch", 0 * c),
        ("cos_total_branch", c / np.sqrt(1 + c**2)),
    ):
        found = result.arrays[f"tokens/{measure}/vit"]
        np.testing.assert_allclose(found[:, :2], expected, atol=FLOAT32)
    kept = 1 / np.sqrt(1 + np.array(scales) ** 2)
    for claim, expected in (
        (skip_connections.CLASS_IS_CARRIED, (10 + 5) / 2 - (1 + 2) / 2),
        (skip_connections.PATCHES_ARE_CHANGED, (10 + 5) / 2 - (1 + 1.25) / 2),
        (skip_connections.CLASS_KEEPS_DIRECTION, kept[:2, 0].mean() - kept[2:, 0].mean()),
        (skip_connections.PATCHES_TURN, kept[2:, 1].mean() - kept[:2, 1].mean()),
    ):
        told = verdict(result, claim)
        assert told.measured == pytest.approx(expected, rel=1e-4)
        assert told.verdict == HOLDS
    # The last norm of every block of an untrained ResNet of timm's is 0.
    above = verdict(result, skip_connections.ABOVE_CNN)
    assert (above.verdict, above.why) == (UNTESTED, skip_connections.NOTHING)


def test_the_median_ratio_is_told_as_a_multiple(noise, tmp_path):
    module = vit(lambda number: Turn(0.25, 0.25), lambda number: Turn(0.25, 0.25),
                 side=SIDE, patch=PATCH)  # fmt: skip
    torch.manual_seed(0)
    cnn = ResNet(BasicBlock, (1,) * 4, channels=(4,) * 4, zero_init_last=False)
    for norm in (one for one in cnn.modules() if isinstance(one, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
    subjects = [subject("vit", module, SIDE), subject("cnn", cnn, SIDE)]
    result = result_of(run(subjects, noise, tmp_path, ["skip_connections"]), "skip_connections")
    ratios = result.arrays["patches/norm_ratio/cnn"]
    assert ratios.shape == (4,)
    told = verdict(result, skip_connections.ABOVE_CNN)
    assert told.measured == pytest.approx(4 / np.median(ratios), rel=FLOAT32)


# --- all of them on networks as they are


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


@pytest.fixture(scope="module")
def real():
    torch.manual_seed(0)
    cnn = ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 16, 16), zero_init_last=False)
    gap = {**VIT, "class_token": False, "global_pool": "avg"}
    mixer = {key: VIT[key] for key in ("img_size", "patch_size", "embed_dim")}
    return [
        subject("vit", VisionTransformer(**VIT), 32),
        subject("gap", VisionTransformer(**gap), 32),
        subject("cnn", cnn, 32),
        subject("mixer", timm.models.mlp_mixer.MlpMixer(num_blocks=4, **mixer), 32),
        subject("vit10", VisionTransformer(**VIT), 32, Variant("less-data", "vit", 10)),
    ]


@pytest.fixture(scope="module")
def outcomes(real, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return run(real, images, folder), run(real, images, folder)


@pytest.mark.parametrize("name", EVERY)
def test_every_claim_has_a_row_and_figures_are_made_of_what_was_saved(outcomes, name, tmp_path):
    result = result_of(outcomes[0], name)
    assert {v.claim for v in result.verdicts} == set(EVERY[name].CLAIMS)
    for row in (v.as_row() for v in result.verdicts):
        assert (row["verdict"] == UNTESTED) == bool(row["why"]), row
    assert {v.claim.experiment for v in result.verdicts} == set(EVERY[name].NUMBERS)
    loaded = Result.load(result.save(tmp_path))
    assert loaded.verdicts == tuple(map(type(loaded.verdicts[0]).from_row, (
        v.as_row() for v in result.verdicts)))  # fmt: skip
    figures = EVERY[name].plot(loaded)
    assert figures.keys() == EVERY[name].plot(result).keys()
    for number, figure in enumerate(figures.values()):
        path = tmp_path / f"{number}.png"
        save(figure, path)
        assert path.stat().st_size > 5000


@pytest.mark.parametrize("name", EVERY)
def test_read_from_disk_a_study_has_the_same_arrays(outcomes, name):
    fresh, again = (result_of(one, name).arrays for one in outcomes)
    assert fresh.keys() == again.keys()
    for key, array in fresh.items():
        np.testing.assert_array_equal(array, again[key], strict=True)


def test_error_bars_are_where_images_are_averaged(outcomes):
    for name in EVERY:
        arrays = result_of(outcomes[0], name).arrays
        errors = [key for key in arrays if "stderr" in key]
        assert errors
        for key in errors:
            assert (np.nan_to_num(arrays[key]) >= 0).all()
            assert np.isfinite(arrays[key]).any()


@pytest.mark.parametrize("name", EVERY)
def test_what_no_network_can_answer_is_not_tested(real, images, tmp_path, name):
    vit_alone = run(real[:1], images, tmp_path, [name])[name]
    cnn_alone = run(real[2:3], images, tmp_path, [name])[name]
    if name == "local_heads":
        assert {one.status for one in (vit_alone, cnn_alone)} == {LEFT_OUT}
        assert vit_alone.why == cnn_alone.why == local_heads.NEEDS_BOTH
        return
    told = {v.why for v in vit_alone.result.verdicts if v.verdict == UNTESTED}
    if name == "attention_distance":
        assert told == {attention_distance.NO_VARIANT}
        assert (cnn_alone.status, cnn_alone.why) == (LEFT_OUT, "needs a transformer")
        return
    pair = "needs a transformer and a CNN" if name == "receptive_fields" else "needs a CNN"
    assert told == {"needs a CNN", pair}
    untested = {v.why for v in cnn_alone.result.verdicts if v.verdict == UNTESTED}
    assert untested <= {"needs a transformer", pair}
    assert {v.claim for v in cnn_alone.result.verdicts} == set(EVERY[name].CLAIMS)


def test_they_stand_in_the_order_of_the_paper():
    names = list(experiments())
    assert [name for name in names if name in EVERY] == list(EVERY)
    assert list(experiments(["e4", "E7"])) == ["attention_distance", "receptive_fields"]


# --- which families they apply to


@pytest.mark.parametrize(
    ("name", "options", "family"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}, TRANSFORMER),
        ("mixer_s32_224", {}, MIXER),
        ("resmlp_12_224", {}, MIXER),
        ("gmlp_s16_224", {}, MIXER),
        ("poolformer_s12", {}, OTHER),
        ("resnet10t", {}, CNN),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, CNN),
        ("mobilenetv3_small_050", {}, CNN),
    ],
)
def test_families_are_told_by_what_blocks_hold(name, options, family):
    with torch.device("meta"):
        module = timm.create_model(name, **options)
    assert Subject(name, Network(name, module, {}, {})).family == family


RUNS = ""
NO_ATTENTION = "needs a transformer"
IN_WINDOWS = "its first axis is not the 1 examples of the batch"
NO_HEADS = "says how many heads it has"
NORMS_BEHIND = "must normalise before its branches"
POOLED_SKIPS = "pools them in between"
MOVED = "moves"
WIDE = {"embed_dim": 24, "num_heads": 3}
# By family: the network, its options, side of the image; what becomes of E3, E5, E6 and E7, E8 and
# E9: they run, or are not applicable, and why.
FAMILIES = {
    "ViT": ("vit_tiny_patch16_224", {**VIT, "depth": 2}, 32, (RUNS, RUNS, RUNS, RUNS)),
    "ViT, mean of tokens": (
        "vit_tiny_patch16_224",
        {**VIT, "depth": 2, "class_token": False, "global_pool": "avg"},
        32,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "DeiT, distilled": (
        "deit_tiny_distilled_patch16_224",
        {**VIT, "depth": 2},
        32,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "ViT with registers": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 28, "depth": 2, **WIDE},
        28,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "DeiT III (LayerScale)": (
        "deit3_small_patch16_224",
        {**VIT, "depth": 2},
        32,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "CLIP": ("vit_base_patch32_clip_224", {**VIT, "depth": 2}, 32, (RUNS, RUNS, RUNS, RUNS)),
    "DINOv2": (
        "vit_small_patch14_dinov2",
        {"img_size": 28, "depth": 2, **WIDE},
        28,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "DINOv3": (
        "vit_small_patch16_dinov3",
        {"img_size": 32, "depth": 2, **WIDE},
        32,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "EVA-02": (
        "eva02_tiny_patch14_224",
        {"img_size": 28, "depth": 2, **WIDE},
        28,
        (RUNS, RUNS, RUNS, RUNS),
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)},
        32,
        (RUNS, IN_WINDOWS, RUNS, RUNS),
    ),
    "Swin V2": (
        "swinv2_tiny_window8_256",
        {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)},
        32,
        (RUNS, IN_WINDOWS, NORMS_BEHIND, NORMS_BEHIND),
    ),
    "MViTv2": ("mvitv2_tiny", {"img_size": 32}, 32, (RUNS, RUNS, RUNS, POOLED_SKIPS)),
    "Hiera": (
        "hiera_tiny_224",
        {"img_size": (64, 64), "embed_dim": 12, "stages": (1, 1, 1, 1)},
        64,
        (RUNS, NO_HEADS, MOVED, MOVED),
    ),
    "MLP-Mixer": (
        "fastcka_mixer_mini",
        {"img_size": 32, "num_blocks": 2, "embed_dim": 24},
        32,
        (NO_ATTENTION, NO_ATTENTION, RUNS, RUNS),
    ),
    "ResNet": (
        "resnet18",
        {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
        32,
        (NO_ATTENTION, NO_ATTENTION, RUNS, RUNS),
    ),
    "ResNet, pre-activation": (
        "resnetv2_50",
        {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)},
        32,
        (NO_ATTENTION, NO_ATTENTION, RUNS, RUNS),
    ),
    "BiT": (
        "resnetv2_50x1_bit",
        {"channels": (128, 128, 256, 256), "stem_chs": 32},
        32,
        (NO_ATTENTION, NO_ATTENTION, RUNS, RUNS),
    ),
    "ConvNeXt": (
        "convnext_atto",
        {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)},
        64,
        (NO_ATTENTION, NO_ATTENTION, RUNS, RUNS),
    ),
}
KINDS = {"MLP-Mixer": MIXER} | dict.fromkeys(
    ("ResNet", "ResNet, pre-activation", "BiT", "ConvNeXt"), CNN
)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_or_is_left_out_with_a_reason(family, images, tmp_path):
    name, options, side, told = FAMILIES[family]
    torch.manual_seed(0)
    assert small.NETWORKS  # imported, it is known to timm
    one = subject(family, timm.create_model(name, **options), side)
    assert one.family == KINDS.get(family, TRANSFORMER)
    cnn = subject("cnn", Pixels(2, size=3), side)
    found = run([one, cnn], images, tmp_path, count=8, fields=1)
    for (experiment, outcome), why in zip(found.items(), told, strict=True):
        if why == NO_ATTENTION:
            assert outcome.status == LEFT_OUT
            assert "needs a transformer" in outcome.why
        elif outcome.status == LEFT_OUT:
            assert why
            assert why in outcome.why
        else:
            result = result_of(found, experiment)
            left_out = result.facts["left_out"].get(family, RUNS)
            assert bool(left_out) == bool(why), left_out
            assert why in left_out
            assert {v.claim for v in result.verdicts} == set(EVERY[experiment].CLAIMS)
            assert EVERY[experiment].plot(result)
