"""Experiments on CKA alone: what they find in planted networks, and how they go on real ones."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from networks import images, net
from tolerance import FLOAT64, REORDERED, assert_close
from torch import nn

import fastcka
from fastcka import CKAResult, data, models
from fastcka.experiments import (
    cross_model,
    data_share,
    fine_tuning,
    mixers,
    skip_removed,
    within_model,
)
from fastcka.experiments.registry import experiments
from fastcka.experiments.runner.claims import FAILS, HOLDS, UNTESTED, Verdict
from fastcka.experiments.runner.needs import NotApplicable
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.study import DONE, LEFT_OUT, Study
from fastcka.experiments.runner.subjects import Subject, Subjects, Variant
from fastcka.experiments.shared.coarse_layers import coarse, layers_alike
from fastcka.experiments.shared.depth import by_tenths, low_less_high, rank_correlation, shares
from fastcka.experiments.shared.same_block import OTHER_BLOCKS, blocks_alike
from fastcka.experiments.shared.two_groups import across_to_within, best_split, sides
from fastcka.models.small import BlockWithoutSkip
from fastcka.report.saving import save

# CKA of 4 batches of 512 examples of 64 features, against its value for endlessly many: unrelated
# ones have a standard deviation of √2/(512 √4) = 1.4e-3; four times that.
SAMPLED = 5.5e-3
N, BATCHES, WIDTH = 512, 4, 64
# The last norms of untrained ResNets are 0 throughout.
pytestmark = pytest.mark.filterwarnings("ignore:.*are constant")


def white(seed, width=WIDTH):
    """Independent examples of independent features, a batch an entry."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, width, generator=generator) for _ in range(BATCHES)]


def measured_cka(rows, columns=None):
    """CKA between layers, each a list of batches."""
    cka = fastcka.MinibatchCKA(
        [str(i) for i in range(len(rows))],
        None if columns is None else [str(i) for i in range(len(columns))],
    )
    for batch in range(BATCHES):
        x = [layer[batch] for layer in rows]
        cka.update(x) if columns is None else cka.update(x, [layer[batch] for layer in columns])
    return cka.compute().cka


def turned(angles, u, v):
    """Layers that go from one representation to another."""
    return [
        [torch.cat([math.cos(a) * x, math.sin(a) * y], 1) for x, y in zip(u, v, strict=True)]
        for a in angles
    ]


def by_angle(a, b):
    """CKA of two layers of `turned`, in closed form."""
    (c1, s1), (c2, s2) = (np.square([np.cos(x), np.sin(x)]) for x in (a, b))
    return (c1 * c2 + s1 * s2) / np.sqrt((c1**2 + s1**2) * (c2**2 + s2**2))


def result_of(cka, layers_a=None, layers_b=None):
    rows, columns = cka.shape
    return CKAResult(
        cka=cka,
        stderr=0.01 + 0 * cka,
        hsic_ab=cka,
        hsic_aa=np.ones(rows),
        hsic_bb=np.ones(columns),
        layers_a=layers_a or tuple(f"a{i}" for i in range(rows)),
        layers_b=layers_b or tuple(f"b{i}" for i in range(columns)),
        n_examples=640,
        n_batches=10,
    )


def subject(name, model, variant=None, seed=0, **options):
    return Subject(name, models.load(model, seed=seed, **options), variant)


VIT, GAP, RESNET, MIXER = (
    f"fastcka_{name}" for name in ("vit_mini", "vit_mini_gap", "resnet_mini", "mixer_mini")
)
DEPTH = 3


@pytest.fixture(scope="module")
def vit():
    return subject("vit", VIT, depth=DEPTH)


@pytest.fixture(scope="module")
def cnn():
    return subject("cnn", RESNET)


@pytest.fixture(scope="module")
def mixer():
    return subject("mixer", MIXER, num_blocks=DEPTH)


def finished(module, subjects, by_need):
    """What an experiment makes of planted measurements."""
    subjects = Subjects(subjects)
    needs = module.plan(module.Config(), subjects)
    result = module.finish(module.Config(), subjects, {need: by_need(need) for need in needs})
    return {(row.claim, row.of): row for row in result.verdicts}, result


def verdict(verdicts, claim):
    (found,) = [row for (one, _), row in verdicts.items() if one is claim]
    return found


# What CKA of planted representations is


def test_a_planted_warp_of_depth_is_recovered_by_the_best_matches():
    u, v = white(1), white(2)
    even, fewer = np.linspace(0, 1, 21), np.linspace(0, 1, 11)
    a, b = even * np.pi / 2, fewer**2 * np.pi / 2
    cka = measured_cka(turned(a, u, v), turned(b, u, v))
    assert_close(cka, by_angle(a[:, None], b), SAMPLED)
    deep = cross_model.best_matches(cka)
    assert_close(21 * deep - 0.5, 20 * fewer**2, 0.75)  # the nearest layer, or one as near
    assert rank_correlation(shares(11), deep) > 0.99
    straight = cross_model.best_matches(measured_cka(turned(a, u, v), turned(a, u, v)))
    np.testing.assert_array_equal(straight, shares(21))


def test_two_networks_compared_are_a_part_of_both_compared_together():
    class Both(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.a, self.b = a, b

        def forward(self, x):
            return self.a(x), self.b(x)

    a, b, batches = net(seed=1), net(seed=2, width=9), images(96).split(32)
    joint = fastcka.compare(Both(a, b), data=batches, layers_a="leaves", progress=False)
    apart = fastcka.compare(a, b, batches, layers_a="leaves", layers_b="leaves", progress=False)
    rows, columns = len(apart.layers_a), len(apart.layers_b)
    assert (rows, columns) == (7, 7)
    assert_close(apart.cka, joint.cka[:rows, rows:], REORDERED)
    assert_close(apart.stderr, joint.stderr[:rows, rows:], REORDERED)


@pytest.mark.parametrize(("share", "told"), [(0.1, 0.1104), (0.3, 0.3939), (1.0, 1.0)])
def test_of_a_shared_part_cka_is_what_it_must_be(share, told):
    closed = share / np.hypot(share, 1 - share)
    assert closed == pytest.approx(told, abs=5e-5)
    u, v = white(3), white(4)
    mixed = [
        torch.cat([share**0.5 * x, (1 - share) ** 0.5 * y], 1) for x, y in zip(u, v, strict=True)
    ]
    assert_close(measured_cka([u], [mixed]), [[closed]], SAMPLED)


def test_of_a_linear_map_cka_follows_from_its_singular_values():
    x = white(5)
    values = torch.linspace(0.1, 3, WIDTH)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(6)))[0]
    mapped = [part @ (values[:, None] * turn) for part in x]
    rotated, moved = [part @ turn for part in x], [3 * part + 7 for part in x]
    cka = measured_cka([x, mapped, rotated, moved])
    closed = float((values**2).sum() / (WIDTH * (values**4).sum()).sqrt())
    assert_close(cka[0, 1], closed, SAMPLED)
    assert_close(cka[0, 2:], [1, 1], 1e-5)
    np.testing.assert_array_equal(cka, cka.T)
    np.testing.assert_array_equal(cka.diagonal(), 1)
    assert np.linalg.eigvalsh(cka).min() > -FLOAT64


def smooth(count, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse_noise = torch.randn(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse_noise, size=(size, size), mode="bicubic")


def test_an_untrained_vit_is_uniform_and_without_skip_connections_of_a_block_two_groups():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4).eval()
    batches = smooth(96).split(32)

    def blocks():
        return fastcka.compare(vit, data=batches, layers_a="blocks", progress=False).cka

    intact = blocks()
    assert intact[0, -1] > 0.97
    vit.blocks[5].__class__ = BlockWithoutSkip
    cka = blocks()
    before, after, across = sides(cka, 5)
    assert before > 0.99
    assert after > 0.95
    assert across < 0.4
    assert best_split(cka) == 5
    assert across_to_within(cka, 5) < 0.5
    assert across < 0.5 * sides(intact, 5)[2]


# Reductions of a matrix of CKA


@pytest.mark.parametrize("place", [2, 5, 9, 18])
def test_a_planted_sequence_of_two_groups_is_split_where_it_was_put_together(place):
    generator = np.random.default_rng(place)
    group = np.arange(20) >= place
    cka = np.where(group[:, None] == group, 0.8, 0.2) + 0.1 * generator.normal(size=(20, 20))
    cka = (cka + cka.T) / 2
    assert best_split(cka) == place
    assert across_to_within(cka, place) == pytest.approx(0.25, abs=0.05)
    cka[3] = cka[:, 3] = np.nan  # a layer without a value
    assert best_split(cka) == place


def test_uniform_layers_are_split_somewhere_and_the_share_tells_that_they_are_not_two():
    cka = np.full((12, 12), 0.9)
    assert across_to_within(cka, best_split(cka)) == pytest.approx(1)


def test_fewer_than_four_layers_are_not_split():
    assert best_split(np.eye(3)) == 0


def test_layers_without_a_value_match_nothing_and_are_no_match():
    cka = np.array([[0.1, np.nan, 0.3], [np.nan, np.nan, np.nan], [0.2, np.nan, 0.1]])
    np.testing.assert_array_equal(cross_model.best_matches(cka), [5 / 6, np.nan, 1 / 6])
    np.testing.assert_array_equal(cross_model.best_of_rows(cka), [0.3, np.nan, 0.2])
    np.testing.assert_array_equal(cross_model.best_of_rows(cka, 10 * cka), [3, np.nan, 2])


def test_tenths_thirds_and_ranks():
    assert by_tenths(np.arange(100.0), np.median)[[0, 9]].tolist() == [4.5, 94.5]
    assert np.isnan(by_tenths(np.arange(5.0), np.max)).sum() == 5
    assert low_less_high(np.array([1, 3, 9, 9, 0, 1.0])) == 1.5
    assert np.isnan(low_less_high(np.array([1.0, 2.0])))
    assert rank_correlation(np.arange(4), np.array([8.0, 4, 2, 1])) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.arange(4), np.ones(4)))


def test_the_shorter_list_of_a_network_that_attends_within_windows_is_its_blocks():
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), img_size=64)
    one = Subject("swin", SimpleNamespace(module=swin))
    assert coarse(one) == one.blocks
    assert len(one.blocks) == 5


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_base_patch32_224", 49),
        ("mixer_b16_224", 49),
        ("resnet50", 32),
        ("resnetv2_50x1_bit", 32),
    ],
)
def test_the_shorter_list_is_as_long_as_the_axes_of_the_paper(name, count):
    with torch.device("meta"):
        module = timm.create_model(name)
    layers = coarse(Subject(name, models.Network(name, module, {}, {})))
    assert len(layers) == len(set(layers)) == count
    assert set(layers) <= set(dict(module.named_modules()))


# What experiments conclude from planted measurements


def warped(power, rows=21, columns=15):
    a, b = np.linspace(0, 1, rows) * np.pi / 4, np.linspace(0, 1, columns) ** power * np.pi / 4
    cka = by_angle(a[:, None], b)
    cka[-rows // 3 :] *= 0.5  # the last layers are like nothing
    return cka


def test_matches_in_the_low_third_hold_and_evenly_spread_ones_do_not(vit, cnn):
    low, _ = finished(cross_model, [vit, cnn], lambda need: result_of(warped(2)))
    assert [row.verdict for row in low.values()] == [HOLDS] * 3
    rows = finished(cross_model, [vit, cnn], lambda need: result_of(warped(1)[:, ::-1]))[0]
    assert verdict(rows, cross_model.LOW_HALF_IS_LOW_THIRD).verdict == FAILS
    assert verdict(rows, cross_model.MATCHES_RISE).verdict == FAILS
    flipped = finished(cross_model, [vit, cnn], lambda need: result_of(warped(2)[::-1]))[0]
    assert verdict(flipped, cross_model.TOP_IS_UNLIKE).verdict == FAILS


def test_layers_that_all_have_one_match_have_no_rank_correlation(vit, cnn):
    cka = np.full((9, 8), 0.1)
    cka[2] = 0.9
    rows, _ = finished(cross_model, [vit, cnn], lambda need: result_of(cka))
    assert verdict(rows, cross_model.MATCHES_RISE).verdict == UNTESTED
    assert "same best match" in verdict(rows, cross_model.MATCHES_RISE).why


def test_skip_connections_that_matter_hold_and_such_that_do_not_fail(vit):
    without = subject(
        "without", "fastcka_vit_mini_noskip1", Variant("no-skip", "vit", 1), depth=DEPTH
    )
    layers = coarse(without)
    place = layers.index("blocks.1.attn")
    group = np.arange(len(layers)) >= place
    cut = np.where(group[:, None] == group, 0.9, 0.2)

    def planted(need):
        whole = need.a.subject == "vit"
        return result_of(np.full_like(cut, 0.8) if whole else cut, layers, layers)

    rows, result = finished(skip_removed, [vit, without], planted)
    assert result.facts["cuts"] == {"without": place}
    assert verdict(rows, skip_removed.APART).measured == pytest.approx(0.2 / 0.9)
    assert verdict(rows, skip_removed.FAR_BELOW_INTACT).measured == pytest.approx(0.2 / 0.8)
    assert [row.verdict for row in rows.values()] == [HOLDS, HOLDS, UNTESTED]
    rows, _ = finished(
        skip_removed, [vit, without], lambda need: result_of(0 * cut + 0.8, layers, layers)
    )
    assert [row.verdict for row in rows.values()] == [FAILS, FAILS, UNTESTED]


def test_accuracy_is_known_of_weights_that_say_it_and_of_no_others(vit):
    trained = Subject("vit", models.load(VIT, pretrained=True))
    without = Subject("without", models.load("fastcka_vit_mini_noskip4", pretrained=True))
    without = replace(without, variant=Variant("no-skip", "vit", 4))
    assert skip_removed.accuracy(vit) is None
    assert 0.9 < skip_removed.accuracy(without) < skip_removed.accuracy(trained) < 1
    rows, _ = finished(
        skip_removed,
        [trained, without],
        lambda need: result_of(np.ones((33, 33)), coarse(trained), coarse(trained)),
    )
    worse = verdict(rows, skip_removed.WORSE)
    assert worse.measured == skip_removed.accuracy(trained) - skip_removed.accuracy(without)
    assert 0 < worse.stderr < 0.01


def test_a_block_that_is_not_there_cannot_lack_skip_connections(vit):
    without = subject("without", VIT, Variant("no-skip", "vit", 3), depth=DEPTH)
    with pytest.raises(ValueError, match=r"block 3, but its blocks are 0 to 2"):
        skip_removed.plan(skip_removed.Config(), Subjects([vit, without]))


def test_a_network_of_another_depth_without_skip_connections_is_left_out_with_the_reason(vit):
    name, variant = "fastcka_vit_mini_noskip1", Variant("no-skip", "vit", 1)
    like, other = (subject(f"{depth}", name, variant, depth=depth) for depth in (DEPTH, DEPTH + 1))
    layers = coarse(like)
    planted = result_of(np.eye(len(layers)) + 0.1, layers, layers)
    rows, result = finished(skip_removed, [vit, like, other], lambda need: planted)
    assert list(result.facts["cuts"]) == [like.name]
    assert {row.why for row in rows.values() if row.of == other.name} == {OTHER_BLOCKS}
    with pytest.raises(NotApplicable, match="it has other blocks than"):
        skip_removed.plan(skip_removed.Config(), Subjects([vit, other]))


def curves(by_name):
    def planted(need):
        curve = np.array(by_name[need.b.subject])
        return result_of(np.where(np.eye(len(curve), dtype=bool), curve[:, None], 0.0))

    return planted


def less(share, of="vit", **options):
    options = {"depth": DEPTH} | options
    return subject(f"{share} %", VIT, Variant("less-data", of, share), seed=share, **options)


def test_curves_that_fall_with_depth_and_rise_with_the_share_hold(vit):
    networks = [vit, less(30), less(10)]
    good = curves({"10 %": [0.9, 0.6, 0.3], "30 %": [0.95, 0.8, 0.6]})
    rows, result = finished(data_share, networks, good)
    assert [row.verdict for row in rows.values()] == [HOLDS] * 4
    assert result.facts["shares"] == {"vit": {"10 %": 10, "30 %": 30}}
    assert rows[data_share.RISES, "vit"].measured == pytest.approx(0.55 / 3)
    assert rows[data_share.RISES, "vit"].stderr == pytest.approx(0.02)
    assert rows[data_share.A_TENTH_IS_ENOUGH, "10 %"].measured == pytest.approx(0.9)
    three = curves({"10 %": [0.2] * 3, "30 %": [0.5] * 3, "60 %": [0.4] * 3})
    rows, _ = finished(data_share, [*networks, less(60)], three)
    assert rows[data_share.RISES, "vit"].measured == pytest.approx(-0.1)  # the last step falls
    bad = curves({"10 %": [0.7, 0.8, 0.9], "30 %": [0.5, 0.5, 0.5]})
    rows, _ = finished(data_share, networks, bad)
    assert rows[data_share.FALLS, "10 %"].verdict == FAILS
    assert rows[data_share.FALLS, "30 %"].verdict == HOLDS  # neither falls nor rises
    assert rows[data_share.RISES, "vit"].verdict == FAILS
    assert rows[data_share.A_TENTH_IS_ENOUGH, "10 %"].verdict == FAILS


def test_one_share_that_is_no_tenth_leaves_claims_untested_with_the_reason(vit):
    rows, _ = finished(data_share, [vit, less(30)], curves({"30 %": [0.9, 0.8, 0.7]}))
    assert rows[data_share.RISES, "vit"].why == (
        "needs networks trained on two shares of the images"
    )
    assert "10 %" in rows[data_share.A_TENTH_IS_ENOUGH, "vit"].why


def test_first_blocks_that_stay_hold_and_last_that_stay_do_not(vit):
    tuned = subject("tuned", VIT, Variant("fine-tuned", "vit"), seed=1, depth=DEPTH)
    rows, _ = finished(fine_tuning, [vit, tuned], curves({"tuned": [1, 0.9, 0.5]}))
    row = verdict(rows, fine_tuning.FIRST_BLOCKS_STAY)
    assert (row.verdict, row.measured, row.stderr) == (HOLDS, 0.5, 0.02)
    rows, _ = finished(fine_tuning, [vit, tuned], curves({"tuned": [0.5, 0.9, 1]}))
    assert verdict(rows, fine_tuning.FIRST_BLOCKS_STAY).verdict == FAILS


@pytest.mark.parametrize("place", [3, 8])
def test_a_mixer_of_two_groups_is_told_by_how_large_the_first_is(place, vit, cnn, mixer):
    layers = coarse(mixer)
    group = np.arange(len(layers)) >= place

    def planted(need):
        if need.b.subject == "mixer":
            return result_of(np.where(group[:, None] == group, 0.9, 0.1), layers, layers)
        return result_of(np.full((len(layers), 6), 0.7 if need.b.subject == "vit" else 0.4))

    rows, result = finished(mixers, [mixer, vit, cnn], planted)
    assert result.facts["splits"] == {"mixer": place}
    assert verdict(rows, mixers.TWO_GROUPS).verdict == HOLDS
    assert verdict(rows, mixers.THE_FIRST_IS_SMALL).measured == place / len(layers)
    assert verdict(rows, mixers.THE_FIRST_IS_SMALL).verdict == (HOLDS if place == 3 else FAILS)
    assert verdict(rows, mixers.LIKE_A_TRANSFORMER).measured == pytest.approx(0.3)


def test_between_low_and_high_blocks_and_between_stages_there_are_errors(vit, cnn):
    blocks = len(cnn.blocks)
    stage = np.arange(blocks) // 2

    def planted(need):
        if need.a.subject == "vit":
            return result_of(np.full((DEPTH, DEPTH), 0.9))
        return result_of(np.where(stage[:, None] == stage, 0.8, 0.3))

    rows, _ = finished(within_model, [vit, cnn], planted)
    uniform = verdict(rows, within_model.TRANSFORMERS_ARE_UNIFORM)
    assert (uniform.measured, uniform.stderr) == (pytest.approx(0.6), pytest.approx(0.02))
    parts = verdict(rows, within_model.STAGES_PART)
    assert (parts.measured, parts.stderr) == (pytest.approx(0.5), pytest.approx(0.02))


def test_why_layers_within_a_network_cannot_be_judged(cnn):
    short = subject("short", VIT, depth=2)
    blocks = len(cnn.blocks)

    def planted(need):
        sides = 2 if need.a.subject == "short" else blocks
        return result_of(np.full((sides, sides), np.nan if sides == blocks else 0.9))

    rows, _ = finished(within_model, [short, cnn], planted)
    assert verdict(rows, within_model.TRANSFORMERS_ARE_UNIFORM).why == within_model.NO_ENDS
    assert verdict(rows, within_model.STAGES_PART).why == "a block has no CKA"


def test_groups_that_are_alike_nowhere_are_not_judged(mixer):
    def planted(need):
        return result_of(np.full((13, 13), -0.1))

    rows, _ = finished(mixers, [mixer], planted)
    assert verdict(rows, mixers.TWO_GROUPS).why == "CKA within the groups is not above 0"


# Whole studies of untrained networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return data.write_images(tmp_path_factory.mktemp("images"), 64, size=64)


def study_of(subjects, folder, out):
    sample = Sample(str(folder), count=64, n=16, batch_size=32)
    return Study(Subjects(subjects), sample, out, progress=False)


FIGURES = {
    "within_model": ["vit", "gap", "cnn"],
    "cross_model": ["vit, cnn", "gap, cnn", "best match, cnn", "best CKA, cnn"],
    "skip_removed": ["vit", "without"],
    "data_share": ["vit"],
    "fine_tuning": ["vit", "vit, gap"],
    "mixers": ["mixer", "mixer, vit", "mixer, gap", "mixer, cnn"],
}
VARIANTS = {
    "10 %": Variant("less-data", "vit", 10),
    "30 %": Variant("less-data", "vit", 30),
    "seed": Variant("other-seed", "vit"),
    "tuned": Variant("fine-tuned", "vit"),
    "without": Variant("no-skip", "vit", 1),
}


@pytest.fixture(scope="module")
def outcomes(vit, cnn, mixer, folder, tmp_path_factory):
    gap = subject("gap", GAP, depth=DEPTH)
    others = [
        subject(
            name, f"{VIT}_noskip1" if name == "without" else VIT, variant, seed=seed, depth=DEPTH
        )
        for seed, (name, variant) in enumerate(VARIANTS.items(), 1)
    ]
    twin = subject("twin", VIT, Variant("fine-tuned", "vit"), depth=DEPTH)
    late = subject("late", VIT, Variant("fine-tuned", "vit"), depth=DEPTH)
    with torch.no_grad():
        for weight in late.network.module.blocks[1:].parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
    everyone = [vit, gap, cnn, mixer, *others, twin, late]
    study = study_of(everyone, folder, tmp_path_factory.mktemp("study"))
    return study.run(experiments(FIGURES))


MODULES = pytest.mark.parametrize("name", FIGURES)


@MODULES
def test_every_claim_has_a_verdict_and_every_number_is_one(outcomes, name):
    outcome, module = outcomes[name], experiments([name])[name]
    assert outcome.status == DONE, outcome.why
    rows = [row.as_row() for row in outcome.result.verdicts]
    assert {row.claim for row in outcome.result.verdicts} == set(module.CLAIMS)
    assert {claim.experiment for claim in module.CLAIMS} == set(module.NUMBERS)
    for row in rows:
        assert (row["verdict"] == UNTESTED) == (row["measured"] is None) == bool(row["why"])
        assert row["of"]
        assert Verdict.from_row(row).as_row() == row


@MODULES
def test_a_result_is_saved_and_drawn_from_what_was_saved(outcomes, name, tmp_path):
    result = outcomes[name].result
    loaded = Result.load(result.save(tmp_path))
    assert loaded.verdicts == result.verdicts
    assert loaded.arrays.keys() == result.arrays.keys()
    for array, values in result.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[array], values)
    figures = experiments([name])[name].plot(loaded)
    assert list(figures) == FIGURES[name]
    save(figures[FIGURES[name][-1]], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_claims_speak_of_no_pixels_and_no_number_of_classes():
    for module in experiments(FIGURES).values():
        assert module.__doc__.count("`fastcka study --experiments E") == 1
        for claim in module.CLAIMS:
            assert not {"px", "224", "1000", "ImageNet"} & set(claim.text.split())


def test_equal_weights_are_alike_and_blocks_before_a_change_stay_exactly_so(outcomes):
    arrays = outcomes["fine_tuning"].result.arrays
    assert_close(arrays["cka/twin"], np.ones(DEPTH), REORDERED)
    assert_close(arrays["cka/late"][0], 1, REORDERED)
    assert (arrays["cka/late"][1:] < 0.99).all()
    assert (arrays["cka/tuned"] < 0.999).all()


def test_within_a_network_cka_is_a_cosine(outcomes):
    for name in ("vit", "gap", "cnn"):
        cka = outcomes["within_model"].result.arrays[f"cka/{name}"]
        seen = np.isfinite(cka.diagonal())
        assert seen.all() or name == "cnn"
        cka = cka[np.ix_(seen, seen)]
        np.testing.assert_array_equal(cka.diagonal(), 1)
        np.testing.assert_array_equal(cka, cka.T)
        assert np.linalg.eigvalsh(cka).min() > -FLOAT64


def test_two_networks_in_a_study_have_the_numbers_of_a_comparison(outcomes, vit, cnn, folder):
    sample = Sample(str(folder), count=64, n=16, batch_size=32)
    result = fastcka.compare(
        vit.network.module,
        cnn.network.module,
        sample.batches([vit, cnn], 64),
        input_a=lambda batch: batch["views"]["vit"],
        input_b=lambda batch: batch["views"]["cnn"],
        layers_a="raghu",
        layers_b="raghu",
        n=16,
        progress=False,
    )
    np.testing.assert_array_equal(outcomes["cross_model"].result.arrays["cka/vit, cnn"], result.cka)


# Networks that are missing


ALONE = {
    "cross_model": "needs a transformer and a CNN",
    "skip_removed": skip_removed.LACKING,
    "data_share": "needs a network and the same one trained on a share of the images",
    "fine_tuning": "needs a network and the same one fine-tuned, or two transformers",
    "mixers": "needs a Mixer",
}


@pytest.mark.parametrize("name", ALONE)
def test_an_experiment_says_what_it_lacks(name, cnn, folder, tmp_path):
    outcome = study_of([cnn], folder, tmp_path).run(experiments([name]))[name]
    assert (outcome.status, outcome.why, outcome.result) == (LEFT_OUT, ALONE[name], None)


def test_a_mixer_alone_is_split_and_compared_with_nothing(mixer):
    layers = coarse(mixer)
    rows, _ = finished(mixers, [mixer], lambda need: result_of(np.eye(len(layers)) + 0.5))
    assert verdict(rows, mixers.TWO_GROUPS).verdict != UNTESTED
    assert verdict(rows, mixers.LIKE_A_TRANSFORMER).why == (
        "needs a transformer and a CNN beside the Mixer"
    )


def test_two_transformers_are_drawn_where_none_is_fine_tuned(vit):
    gap = subject("gap", GAP, depth=DEPTH)
    assert fine_tuning.plan(fine_tuning.Config(), Subjects([vit, gap])) == [layers_alike(vit, gap)]
    rows, result = finished(fine_tuning, [vit, gap], lambda need: result_of(np.eye(13)))
    assert verdict(rows, fine_tuning.FIRST_BLOCKS_STAY).why == (
        "needs a network and the same one fine-tuned"
    )
    assert list(fine_tuning.plot(result)) == ["vit, gap"]


def test_a_variant_with_other_blocks_is_not_compared_block_by_block(vit):
    other = less(10, depth=DEPTH + 1)
    with pytest.raises(NotApplicable, match="it has other blocks than"):
        data_share.plan(data_share.Config(), Subjects([vit, other]))
    needs = data_share.plan(data_share.Config(), Subjects([vit, other, less(30)]))
    assert needs == [blocks_alike(less(30))]


def test_a_block_at_the_end_is_no_middle_block(vit):
    without = subject(
        "without", "fastcka_vit_mini_noskip0", Variant("no-skip", "vit", 0), depth=DEPTH
    )
    layers = coarse(without)
    rows, _ = finished(
        skip_removed, [vit, without], lambda need: result_of(np.eye(len(layers)), layers, layers)
    )
    worse = verdict(rows, skip_removed.WORSE)
    assert (worse.verdict, worse.why) == (UNTESTED, "its block is not in the middle third")
