"""Experiments on tokens and probes: planted networks with closed forms, and how real ones go."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcka import data, models
from fastcka.experiments import depth_probes, localisation, token_probes
from fastcka.experiments.registry import experiments
from fastcka.experiments.runner.claims import FAILS, HOLDS, UNTESTED
from fastcka.experiments.runner.needs import NotApplicable
from fastcka.experiments.runner.probing import Shots
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.study import DONE, LEFT_OUT, Study
from fastcka.experiments.runner.subjects import Subject, Subjects, Variant
from fastcka.experiments.shared.accuracy import above_chance
from fastcka.experiments.shared.classifier import twins
from fastcka.maths.localisation import mixed
from fastcka.maths.ridge import accuracy_at, separation_of_the_mean
from fastcka.report.saving import save

EVERY = {"localisation": localisation, "token_probes": token_probes, "depth_probes": depth_probes}


class Attention(nn.Module):
    """What a transformer's block is known by."""

    num_heads = 1


class Block(nn.Module):
    """Makes something of the tokens; what makes it a block has no part in that."""

    def __init__(self, way, heads):
        super().__init__()
        self.way = way
        # Of convolutions, so that maps have their channels first.
        self.unused = nn.ModuleList(nn.Linear(1, 1) if heads else nn.Conv2d(1, 1, 3) for _ in "ab")
        if heads:
            self.attn = Attention()

    def forward(self, x):
        return self.way(x)


class Planted(nn.Module):
    """Linear tokens of patches, of which each block makes something, whatever the others do."""

    def __init__(self, weight, side, ways, kind):
        super().__init__()
        width = weight.shape[1]
        self.side, self.kind = side, kind
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, len(weight), side, stride=side, bias=False)
        with torch.no_grad():
            self.patch_embed.proj.weight.copy_(weight.reshape(-1, 3, side, side))
        assert width == 3 * side**2
        self.blocks = nn.ModuleList(Block(way, heads=kind != "CNN") for way in ways)
        self.num_prefix_tokens = int(kind == "CLS")
        self.cls_token = nn.Parameter(torch.zeros(1)) if kind == "CLS" else None
        self.global_pool = "token" if kind == "CLS" else "avg"

    def forward(self, images):
        maps = self.patch_embed.proj(images)
        if self.kind == "CNN":
            return [block(maps) for block in self.blocks]
        tokens = maps.flatten(2).mT
        if self.kind == "CLS":
            tokens = torch.cat([tokens[:, KNOWING : KNOWING + 1], tokens], 1)
        return [block(tokens) for block in self.blocks]


def planted(name, weight, side, grid, ways, kind, variant=None):
    pixels = side * grid
    config = {
        "input_size": (3, pixels, pixels),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    provenance = {"name": name, "kind": kind}
    module = Planted(weight, side, ways, kind).eval()
    return Subject(name, models.Network(name, module, config, provenance), variant)


def written(folder, pixels, label):
    """Images [n, 3, height, width] as files, in a folder a class."""
    values = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for number, (image, kind) in enumerate(zip(values, label.tolist(), strict=True)):
        path = folder / str(kind) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(folder)


def ran(subjects, sample, folder, asked, shots=None):
    study = Study(Subjects(subjects), sample, folder, shots or Shots(), progress=False)
    return study.run(asked)


def result_of(outcome):
    assert outcome.status == DONE, outcome.why
    return outcome.result


# Localisation: white noise, patches of 2 pixels on a grid of 4, half of what is in them kept.

GRID, SIDE, KEPT = 4, 2, 6
WIDTH, TOKENS = 3 * SIDE**2, GRID**2
N, BATCHES = 128, 6
FLOOR = 4 * math.sqrt(2) / (N * math.sqrt(BATCHES))


def sharing(alpha, prefix=0):
    """Each token takes a share of the mean of all."""

    def way(x):
        if x.ndim == 4:
            return (1 - alpha) * x + alpha * x.mean((2, 3), keepdim=True)
        return (1 - alpha) * x + alpha * x[:, prefix:].mean(1, keepdim=True)

    return way


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N * BATCHES, 3, GRID * SIDE, GRID * SIDE), generator=g).float()
    folder = tmp_path_factory.mktemp("noise")
    return Sample(written(folder, pixels, torch.zeros(len(pixels))), None, n=N, batch_size=N)


@pytest.fixture(scope="module")
def local(noise, tmp_path_factory):
    """Tokens that stay apart with a class token, that mix without one, and a CNN that averages."""
    weight = torch.linalg.qr(torch.randn(WIDTH, KEPT, generator=torch.Generator().manual_seed(1)))
    weight = weight[0].T
    subjects = [
        planted("vit", weight, SIDE, GRID, [sharing(0), sharing(0.3, 1), sharing(0)], "CLS"),
        planted("gap", weight, SIDE, GRID, [sharing(0), sharing(0.3), sharing(0.9)], "GAP"),
        planted("cnn", weight, SIDE, GRID, [sharing(0), sharing(0.3), sharing(1.0)], "CNN"),
    ]
    folder = tmp_path_factory.mktemp("local")
    return result_of(ran(subjects, noise, folder, {"a": localisation})["a"])


@pytest.mark.parametrize(
    ("layer", "alpha"),
    [("vit/blocks.1", 0.3), ("vit/blocks.2", 0), ("gap/blocks.2", 0.9), ("cnn/blocks.2", 1)],
)
def test_tokens_are_like_patches_as_the_closed_form_says(local, layer, alpha):
    table, stderr = local.arrays[f"cka/{layer}"], local.arrays[f"stderr/{layer}"]
    own, other = (math.sqrt(KEPT / WIDTH) * share for share in mixed(alpha, TOKENS))
    expected = np.full((TOKENS, TOKENS), other)
    np.fill_diagonal(expected, own)
    assert (np.abs(table - expected) < 5 * stderr + FLOOR).all()


def verdict_of(result, claim, of=None):
    (row,) = [row for row in result.verdicts if row.claim == claim and of in (None, row.of)]
    return row


def test_claims_on_planted_locality_are_what_was_planted(local):
    own = math.sqrt(KEPT / WIDTH)
    mean, other = (own * share for share in mixed(0.9, TOKENS))
    local_vit = verdict_of(local, localisation.LOCAL)
    assert (local_vit.of, local_vit.measured, local_vit.verdict) == ("vit", 1, HOLDS)
    less = verdict_of(local, localisation.CNN_LESS)
    assert less.measured > 0.7  # of equal tokens one at most is like its own patch most
    flatter = verdict_of(local, localisation.CNN_FLATTER)
    assert abs(flatter.measured - own) < 5 * flatter.stderr + FLOOR
    assert 0 < flatter.stderr < 0.1
    gap = verdict_of(local, localisation.MEAN_FLATTER)
    assert abs(gap.measured - (own - mean + other)) < 5 * gap.stderr + FLOOR
    assert gap.of == "vit, gap"


def test_the_four_tokens_are_where_those_of_the_paper_are():
    assert localisation.four(7, 7) == [(0, 0), (2, 1), (4, 2), (4, 4)]
    assert localisation.four(2, 2) == [(0, 0), (1, 0), (1, 1)]
    assert localisation.four(7, 14)[-1] == (4, 9)


# Probes: images of 3 x 3 pixels, each a token; what tells two classes apart in each channel.

SQUARE = 3
KNOWING = 4  # the token that knows the class by the first channel
STRONG, WEAK, FAIR = 3.0, 0.5, 1.0
SHOTS = Shots(150, 100, 1)
COUNT = 1500
SD = 20


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    label = torch.arange(COUNT) % 2
    sign = (label - 0.5)[:, None]
    z = torch.randn(COUNT, 3, SQUARE**2, generator=g)
    z[:, 0, KNOWING] += STRONG * sign[:, 0]
    z[:, 1] += WEAK * sign
    z[:, 2] += FAIR * sign
    pixels = 127.5 + SD * z.reshape(COUNT, 3, SQUARE, SQUARE)
    folder = tmp_path_factory.mktemp("labelled")
    return Sample(written(folder, pixels, label), None, n=N, batch_size=250)


def channel(number):
    """Nothing but this channel of the pixels."""

    def way(x):
        kept = torch.zeros(3)
        kept[number] = 1
        return x * (kept[:, None, None] if x.ndim == 4 else kept)

    return way


ONE, ALL_WEAK, ALL_FAIR = channel(0), channel(1), channel(2)
# How far apart the classes are in the mean of the tokens.
IN_MEAN = {
    ONE: separation_of_the_mean([STRONG] + [0] * (SQUARE**2 - 1)),
    ALL_WEAK: separation_of_the_mean([WEAK] * SQUARE**2),
    ALL_FAIR: separation_of_the_mean([FAIR] * SQUARE**2),
}
WAYS = {
    "vit": [ONE, ALL_WEAK, ONE],
    "gap": [ONE, ALL_WEAK, ALL_FAIR],
    "cnn": [ONE, ALL_WEAK, ALL_FAIR],
    "more": [ALL_WEAK, ALL_WEAK, ALL_FAIR],
    "less": [ONE, ONE, ALL_WEAK],
}


@pytest.fixture(scope="module")
def probed(labelled, tmp_path_factory):
    def make(name, kind, variant=None):
        return planted(name, torch.eye(3), 1, SQUARE, WAYS[name], kind, variant)

    subjects = [
        make("vit", "CLS"),
        make("gap", "GAP"),
        make("cnn", "CNN"),
        make("more", "GAP"),
        make("less", "GAP", Variant("less-data", "more", 10)),
    ]
    asked = {"tokens": token_probes, "depth": depth_probes}
    outcomes = ran(subjects, labelled, tmp_path_factory.mktemp("probed"), asked, SHOTS)
    return SimpleNamespace(**{name: result_of(outcome) for name, outcome in outcomes.items()})


def near(measured, separation):
    """Within 4 binomial standard errors, and 2 % that a probe of finitely many images loses."""
    expected = accuracy_at(separation)
    error = 4 * math.sqrt(expected * (1 - expected) / (COUNT - 2 * 250))
    return expected - error - 0.02 < measured < expected + error


def test_of_a_label_in_one_token_this_one_knows_and_the_others_do_not(probed):
    for name in ("vit", "gap", "cnn"):
        found = probed.tokens.arrays[f"accuracy/{name}/blocks.0"]
        assert found.shape == (SQUARE, SQUARE)
        assert near(found.ravel()[KNOWING], STRONG)
        assert all(near(other, 0) for other in np.delete(found.ravel(), KNOWING))


def test_a_weak_signal_in_all_tokens_is_in_each_of_them(probed):
    for name in ("vit", "gap", "cnn"):
        found = probed.tokens.arrays[f"accuracy/{name}/blocks.1"]
        assert all(near(one, WEAK) for one in found.ravel())
        assert near(probed.tokens.arrays[f"tokens/accuracy/{name}"][1], WEAK)


def test_tokens_put_together_know_what_the_closed_form_says(probed):
    arrays = probed.tokens.arrays
    for name, ways in WAYS.items():
        for tokens in ("gap", "patches"):
            for block, way in enumerate(ways):
                if name == "cnn" or tokens == "gap":
                    found = probed.depth.arrays[f"{tokens}/accuracy/{name}"]
                    assert near(found[block], IN_MEAN[way]), (name, block)
    # The first token knows by the channels that all know by; the class token is the one that knows.
    assert near(arrays["first/accuracy/gap"][0], 0)
    assert near(arrays["first/accuracy/gap"][2], FAIR)
    assert near(arrays["cls/accuracy/vit"][0], STRONG)
    doubled = 2 * STRONG / math.sqrt(2**2 + SQUARE**2 - 1)  # it is there twice
    assert near(arrays["all/accuracy/vit"][0], doubled)


def test_errors_are_those_of_the_test_images(probed):
    tests = COUNT - 2 * (SHOTS.fit + SHOTS.held_out)
    for name in ("vit", "gap"):
        p = probed.depth.arrays[f"gap/accuracy/{name}"]
        np.testing.assert_allclose(
            probed.depth.arrays[f"gap/stderr/{name}"], np.sqrt(p * (1 - p) / tests), rtol=1e-9
        )


def test_claims_on_planted_probes_are_what_was_planted(probed):
    def gain(separation):
        return above_chance(accuracy_at(separation), 2)

    vit = gain(STRONG) / SQUARE**2  # one token knows, the others do not
    times = verdict_of(probed.tokens, token_probes.MEAN_KNOWS, "gap, vit")
    assert abs(times.measured - gain(FAIR) / vit) < 4 * times.stderr + 0.3
    assert 0 < times.stderr < 2
    # At depth 0.3 there is the first block alone, in which the first token knows nothing.
    late = verdict_of(probed.tokens, token_probes.FIRST_IS_LATE, "gap")
    assert late.verdict == HOLDS
    assert abs(late.measured - gain(IN_MEAN[ONE])) < 0.12
    best = verdict_of(probed.tokens, token_probes.CLASS_TOKEN_BEST)
    assert abs(best.measured - gain(STRONG) + gain(IN_MEAN[ONE])) < 0.12
    heads = verdict_of(probed.tokens, token_probes.EQUAL_HEADS, "vit, gap")
    assert heads.measured < 0.05  # Φ(3/2) both
    assert heads.verdict == HOLDS
    enough = verdict_of(probed.tokens, token_probes.FIRST_IS_ENOUGH, "gap")
    assert enough.verdict == FAILS
    assert abs(enough.measured - gain(IN_MEAN[ALL_FAIR]) + gain(FAIR)) < 0.12
    more = verdict_of(probed.depth, depth_probes.MORE_IMAGES)
    assert more.of == "more, less"
    assert more.verdict == HOLDS
    assert abs(more.measured - gain(IN_MEAN[ALL_WEAK]) + gain(IN_MEAN[ONE])) < 0.12
    # Half of three blocks is halfway between the first and the second.
    early = verdict_of(probed.depth, depth_probes.TRANSFORMER_EARLIER, "more, cnn")
    cnn = (gain(IN_MEAN[ONE]) + gain(IN_MEAN[ALL_WEAK])) / 2
    assert abs(early.measured - gain(IN_MEAN[ALL_WEAK]) + cnn) < 0.12


@pytest.mark.parametrize(("right", "verdict"), [(0.5, UNTESTED), (0.9, HOLDS)])
def test_that_all_classify_by_chance_does_not_make_them_equal(right, verdict):
    names = ("vit", "gap")
    subjects = Subjects(
        subject(name, model, depth=2) for name, model in zip(names, (VIT, GAP), strict=True)
    )
    keys = [f"{tokens}/{{}}/{name}" for tokens in ("tokens", "cls", "first", "gap", "all")
            for name in names] + [f"{{}}/{name}/blocks.1" for name in names]  # fmt: skip
    arrays = {key.format("accuracy"): np.full(2, right) for key in keys}
    arrays |= {key.format("stderr"): np.full(2, 0.001) for key in keys}
    rows = token_probes._verdicts(subjects, token_probes._Known(arrays, 2, {}, {}))
    equal = (token_probes.INTERCHANGEABLE, token_probes.EQUAL_HEADS, token_probes.FIRST_IS_ENOUGH)
    for row in (row for row in rows if row.claim in equal):
        assert row.verdict == verdict
        assert ("above chance" in row.why) == (verdict == UNTESTED)


# Real networks, untrained.

VIT, GAP, RESNET, MIXER = (
    f"fastcka_{name}_mini{rest}"
    for name, rest in (("vit", ""), ("vit", "_gap"), ("resnet", ""), ("mixer", ""))
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(data.write_images(tmp_path_factory.mktemp("images"), 64, size=64))


def few(images):
    return Sample(images, count=32, n=16, batch_size=32, tests=24)


def subject(name, model, variant=None, seed=0, **options):
    return Subject(name, models.load(model, seed=seed, **options), variant)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    subjects = [
        subject("vit", VIT, depth=3),
        subject("gap", GAP, depth=3),
        subject("resnet", RESNET),
        subject("mixer", MIXER, num_blocks=3),
        subject("vit 10 %", VIT, Variant("less-data", "vit", 10), seed=1, depth=3),
    ]
    folder = tmp_path_factory.mktemp("whole")
    return ran(subjects, few(images), folder, EVERY, Shots(2, 2, 2))


def all_claims_are_answered(module, result):
    assert {row.claim for row in result.verdicts} == set(module.CLAIMS)
    for row in result.verdicts:
        assert (row.verdict == UNTESTED) == bool(row.why), row


@pytest.mark.parametrize("name", EVERY)
def test_every_claim_has_a_verdict_and_the_figures_are_of_what_was_saved(whole, name, tmp_path):
    result = result_of(whole[name])
    all_claims_are_answered(EVERY[name], result)
    loaded = Result.load(result.save(tmp_path))
    assert loaded.verdicts == result.verdicts
    figures = EVERY[name].plot(loaded)
    assert len(figures) == {"localisation": 4, "token_probes": 6, "depth_probes": 2}[name]
    for number, figure in enumerate(figures.values()):
        save(figure, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_a_map_without_interior_is_told_of_with_the_last_that_has_one(whole):
    result = result_of(whole["localisation"])
    row = verdict_of(result, localisation.CNN_LESS)
    assert "the 2 x 2 positions of the last block of resnet are all border; at layer3.1" in row.why
    roles = {layer["name"]: layer["role"] for layer in result.facts["layers"]["resnet"]}
    assert roles == {
        "layer4.1": localisation.LAST,
        "layer4.0": localisation.EARLIER,
        "layer3.1": localisation.INTERIOR,
    }


def test_what_is_missing_is_said(images, tmp_path):
    mixer = subject("mixer", MIXER, num_blocks=2)
    outcomes = ran([mixer], few(images), tmp_path, EVERY, Shots(1, 1, 1))
    expected = {
        "localisation": ["transformer with a class token", "and a CNN", "with equal blocks"],
        "token_probes": ["by its class token", "by the mean of its tokens", "with equal blocks"],
        "depth_probes": ["trained on a share of the images", "needs a transformer and a CNN"],
    }
    for name, module in EVERY.items():
        result = result_of(outcomes[name])
        all_claims_are_answered(module, result)
        told = " ".join(row.why for row in result.verdicts)
        assert all(text in told for text in expected[name]), told
        assert module.plot(result)


def test_a_network_that_cannot_be_used_is_left_out_and_its_pairs_say_so(images, tmp_path):
    gone = "its tokens are out of order"
    vit, cnn = subject("vit", VIT, depth=2), subject("cnn", RESNET)
    gap = replace(subject("gap", GAP, depth=2))

    def broken(x):
        raise ValueError(gone)

    gap.network.module.blocks[0].register_forward_pre_hook(lambda module, args: broken(args[0]))
    outcomes = ran([vit, cnn, gap], few(images), tmp_path, EVERY, Shots(1, 1, 1))
    for name, module in EVERY.items():
        result = result_of(outcomes[name])
        all_claims_are_answered(module, result)
        assert f"gap is left out: {gone}" in {row.why for row in result.verdicts}
        assert gone in str(result.facts["left_out"])
    with pytest.raises(NotApplicable, match=gone):
        depth_probes.plan(depth_probes.Config(), Subjects([gap]))
    with pytest.raises(NotApplicable, match=gone):
        localisation.plan(localisation.Config(), Subjects([gap]))
    with pytest.raises(NotApplicable, match=gone):
        token_probes.plan(token_probes.Config(), Subjects([gap]))


@pytest.mark.parametrize(
    ("options", "count"), [({}, 1), ({"img_size": 32}, 0), ({"patch_size": 4}, 0)]
)
def test_twins_have_equal_images_patches_and_blocks(options, count):
    one, other = subject("one", VIT, depth=2), subject("other", GAP, depth=2, **options)
    assert len(twins(Subjects([one, other]))) == count


def test_a_network_that_fails_is_left_out_with_its_error():
    vit, gone = subject("vit", VIT, depth=2), subject("gone", GAP, depth=2)

    def broken(module, args):
        raise RuntimeError("the tables do not fit")

    gone.network.module.blocks[0].register_forward_pre_hook(broken)
    found, reasons = depth_probes._probes(Subjects([vit, gone]))
    assert list(found) == ["vit"]
    assert reasons == {"gone": "RuntimeError: the tables do not fit"}


def test_images_without_labels_leave_the_probes_out_alone(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(data.write_images(tmp_path / "images", 40).glob("*/*.png")):
        path.rename(flat / f"{number}.png")
    subjects = [subject("vit", VIT, depth=2)]
    outcomes = ran(subjects, few(str(flat)), tmp_path, EVERY, Shots(1, 1, 1))
    assert [outcome.status for outcome in outcomes.values()] == [DONE, LEFT_OUT, LEFT_OUT]
    assert "labelled images" in outcomes["depth_probes"].why


def test_deep_networks_are_probed_token_by_token_at_five_depths():
    deep = Subjects([subject("vit", VIT, depth=12)])
    config = token_probes.Config()
    found, _ = token_probes._single(config, deep)
    assert found["vit"].blocks == (0, 3, 6, 8, 11)
    assert set(found["vit"].sides.values()) == {(7, 7)}  # of 8 x 8
    few_tokens, _ = token_probes._single(replace(config, depths=2, side=3), deep)
    assert few_tokens["vit"].sides == {"blocks.0": (3, 3), "blocks.11": (3, 3)}
    assert few_tokens["vit"].need != found["vit"].need


def test_needs_are_equal_whenever_they_are_made():
    subjects = Subjects([subject("vit", VIT, depth=2), subject("cnn", RESNET)])
    for module in EVERY.values():
        first, again = (module.plan(module.Config(), subjects) for _ in range(2))
        assert first == again
        assert len(set(first + again)) == len(first)


def test_they_are_found_by_their_numbers():
    asked = ("E11", "E12", "E13", "E14", "E15", "E16")
    assert list(experiments(asked)) == list(EVERY)


# What becomes of each family; "" is that it is measured.

S = {"img_size": 64}
SHORT = {"img_size": 64, "depth": 2}
NO_CLASSES_BY_TOKENS = "neither by its class token nor by the mean"
NOT_A_TRANSFORMER = None  # E14 is about transformers
FAMILIES = {
    "class token": ("vit_tiny_patch16_224", SHORT, 64, ("", "", "", "")),
    "mean": ("vit_tiny_patch16_224", {**SHORT, "class_token": False, "global_pool": "avg"}, 64,
             ("", "", "", "")),
    "distilled": ("deit_tiny_distilled_patch16_224", SHORT, 64, ("", "", "", "")),
    "registers": ("vit_tiny_patch16_224", {**SHORT, "reg_tokens": 4}, 64, ("", "", "", "")),
    "DeiT3": ("deit3_small_patch16_224", SHORT, 64, ("", "", "", "")),
    "CLIP": ("vit_base_patch32_clip_224", {"img_size": 128, "depth": 2, "embed_dim": 96,
             "num_heads": 3}, 128, ("", "", "", "")),
    "SigLIP": ("vit_base_patch16_siglip_224", {**SHORT, "embed_dim": 96, "num_heads": 3}, 64,
               ("", "", NO_CLASSES_BY_TOKENS, "")),
    "DINOv2": ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 2}, 56, ("", "", "", "")),
    "DINOv3": ("vit_small_patch16_dinov3", SHORT, 64, ("", "", "", "")),
    "EVA": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, 56, ("", "", "", "")),
    "Swin": ("swin_tiny_patch4_window7_224", {**S, "depths": (1, 1, 1), "num_heads": (1, 2, 2),
             "embed_dim": 24, "window_size": 4}, 64, ("", "", "", "")),
    "MViTv2": ("mvitv2_tiny", {"img_size": 64}, 64, ("", "", "", "")),
    "Hiera": ("hiera_tiny_224", {"img_size": 96, "stages": (1, 1, 1, 1)}, 96,
              ("the order of its mask units", "", "", "")),
    "Mixer": ("mixer_s32_224", {"img_size": 64}, 64, ("", "", NOT_A_TRANSFORMER, "")),
    "ResNet": ("resnet18", {}, 64, ("", "", NOT_A_TRANSFORMER, "")),
    "ResNet v2": ("resnetv2_18", {}, 64, ("", "", NOT_A_TRANSFORMER, "")),
    "BiT": ("resnetv2_50x1_bit", {}, 64, ("", "", NOT_A_TRANSFORMER, "")),
    "ConvNeXt": ("convnext_atto", {}, 64, ("", "", NOT_A_TRANSFORMER, "")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_or_it_is_said_why_not(family, images, tmp_path):
    name, options, size, expected = FAMILIES[family]
    network = models.load(name, **options)
    config = network.data_config | {"input_size": (3, size, size), "crop_pct": 1.0}
    one = Subject("net", replace(network, data_config=config))
    sample = Sample(images, count=8, n=4, batch_size=8, tests=8)
    outcomes = ran([one], sample, tmp_path, EVERY, Shots(1, 1, 1))
    found = {name: outcome.result for name, outcome in outcomes.items() if outcome.status == DONE}
    where, tokens = found.get("localisation"), found["token_probes"].facts
    measured = (
        where is not None and "net" in where.facts["layers"],
        "net" in tokens["layers"],
        "net" in tokens["series"],
        "net" in found["depth_probes"].facts["probes"],
    )
    reasons = (
        outcomes["localisation"].why,
        tokens["left_out"]["single tokens"].get("net", ""),
        tokens["left_out"]["tokens together"].get("net", ""),
        found["depth_probes"].facts["left_out"].get("net", ""),
    )
    for number, wanted, is_measured, why in zip(
        ("E11", "E13", "E14", "E16"), expected, measured, reasons, strict=True
    ):
        assert is_measured == (wanted == ""), (number, why)
        assert (wanted or "") in why, number
        assert bool(wanted) == bool(why), (number, why)
    for name, result in found.items():
        all_claims_are_answered(EVERY[name], result)
