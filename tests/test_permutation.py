"""Chance: permuted Gram matrices, uniform p-values, and scores of 0 for unrelated layers."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from tolerance import FLOAT64, assert_close

import fastcka
from fastcka import MinibatchCKA
from fastcka.kernels import gram_finish
from fastcka.maths.cka import minibatch
from fastcka.permutation import calibrated, p_value_of, p_values, permuted_products


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_permuting_the_packed_triangle_is_permuting_the_examples(estimator):
    n = 9
    layers = {
        name: [torch.randn(n, p).double() for p in widths]
        for name, widths in {"a": (4, 2), "b": (5, 3, 6)}.items()
    }

    def packed(xs):
        return gram_finish(xs, estimator=estimator).packed

    before = {name: packed(xs) for name, xs in layers.items()}
    pairs = [("a", "a"), ("a", "b"), ("b", "b")]
    found = permuted_products(before, pairs, n, estimator, 6, number=3)
    random = np.random.default_rng((n, 3))
    for k in range(6):
        order = torch.from_numpy(random.permutation(n))
        moved = {name: packed([x[order] for x in xs]) for name, xs in layers.items()}
        scale = FLOAT64 * float((before["a"] @ before["b"].T).abs().max())
        assert_close(found["a", "b"][k], before["a"] @ moved["b"].T, scale)
        within = before["b"] @ moved["b"].T
        assert_close(found["b", "b"][k].tril(), within.tril(), scale)
        assert torch.equal(found["b", "b"][k], found["b", "b"][k].T)


def test_p_values_count_what_is_as_large():
    null = np.array([[0.1], [0.2], [0.3], [0.4]])
    assert p_values(np.array([0.5]), null) == [1 / 5]
    assert p_values(np.array([0.3]), null) == [3 / 5]
    assert p_values(np.array([0.0]), null) == [1]
    for observed in (0.3, -0.3):  # the same number, added up in another order
        short = np.array([[np.nextafter(observed, -1)], [observed - 1e-9]])
        assert p_values(np.array([observed]), short) == [2 / 3]
    assert np.isnan(p_values(np.array([np.nan]), null)).all()
    cells = np.array([[[0.1, 0.9]], [[0.5, 0.2]], [[0.3, 0.3]]])  # the largest: 0.9, 0.5, 0.3
    assert p_value_of(np.max, np.array([[0.4, 0.6]]), cells) == 2 / 4


def test_orders_that_change_nothing_count_though_they_are_rounded():
    # Of 24 orders of 4 examples 4 leave the unbiased HSIC as it is: p is 1/6 at least.
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    cka = MinibatchCKA(["x"], ["y"], permutations=2000).update([x], [y])
    result = cka.compute()
    same = np.isclose(result.null[:, 0, 0], result.cka[0, 0], rtol=1e-9)
    assert abs(same.mean() - 1 / 6) < 4 * np.sqrt(5 / 36 / 2000)
    assert result.p_values()[0, 0] >= (1 + same.sum()) / 2001


def test_too_few_orders_for_a_score_are_told():
    null = np.random.default_rng(0).random((18, 2, 2))
    with pytest.raises(
        ValueError, match=r"`level` 0.05 needs 19 permutations or more, but there ar"
    ):
        calibrated(np.ones((2, 2)), null, 0.05)
    assert (calibrated(np.ones((2, 2)), null, 0.1) == 1).all()


def test_scores_begin_at_the_quantile_and_end_at_one():
    null = np.linspace(0, 0.95, 20)[:, None]  # with the observed 21: the 20th is τ at level 0.05
    assert calibrated(np.array([1.0]), null, 0.05) == 1
    assert calibrated(np.array([0.96]), null, 0.05) == pytest.approx((0.96 - 0.95) / 0.05)
    assert calibrated(np.array([0.95]), null, 0.05) == 0
    assert calibrated(np.array([-0.2]), null, 0.05) == 0
    assert np.isnan(calibrated(np.array([np.nan]), null, 0.05)).all()


def unrelated(seed, batches=2, n=12, permutations=99, together=0.0):
    """CKA of layers that share nothing, or a part of each other."""
    generator = torch.Generator().manual_seed(seed)

    def normal(p):
        return torch.randn(n, p, generator=generator)

    cka = MinibatchCKA(["x0", "x1"], ["y0"], permutations=permutations)
    for _ in range(batches):
        x = normal(4)
        cka.update([x, normal(9).exp()], [together * x + normal(4)])
    return cka.compute()


def test_p_values_of_unrelated_layers_are_uniform_and_their_scores_are_zero():
    results = [unrelated(seed) for seed in range(400)]
    found = np.array([result.p_values() for result in results])
    for cell in (found[:, 0, 0], found[:, 1, 0]):
        # From 1/100 to 1 in hundredths: a uniform one between is put in their place.
        spread = cell - np.random.default_rng(0).random(len(cell)) / 100
        assert kstest(spread, "uniform").pvalue > 0.01
    largest = np.array([result.p_value_of(np.max) for result in results])
    spread = largest - np.random.default_rng(0).random(len(largest)) / 100
    assert kstest(spread, "uniform").pvalue > 0.01
    zero = np.array([result.calibrated(0.05) == 0 for result in results])
    error = np.sqrt(0.05 * 0.95 / len(results))
    assert (zero.mean(0) >= 0.95 - 3 * error).all()


def test_layers_that_share_something_are_seen():
    result = unrelated(0, batches=6, n=24, together=2.0)
    assert result.p_values()[0, 0] == 1 / 100
    assert 0 < result.calibrated()[0, 0] < result.cka[0, 0]
    assert result.p_values()[1, 0] > 1 / 100


def test_a_layer_with_itself_scores_one():
    cka = MinibatchCKA(["x"], permutations=50)
    cka.update([torch.randn(16, 5)])
    result = cka.compute()
    assert result.calibrated() == 1
    assert result.p_values() == 1 / 51


@pytest.mark.parametrize("weighting", ["pairs", "equal"])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_chance_is_the_ratio_of_sums_over_permuted_batches(weighting, estimator):
    xs, ys = ([torch.randn(n, p).double() for n in (8, 12, 5)] for p in (4, 5))
    cka = MinibatchCKA(["x"], ["y"], permutations=7, weighting=weighting, estimator=estimator)
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        cka.update([x], [y], index=number)
    orders = [np.random.default_rng((len(x), number)) for number, x in enumerate(xs)]
    null = cka.compute().null
    for k in range(7):
        moved = [y[random.permutation(len(y))] for y, random in zip(ys, orders, strict=True)]
        expected = minibatch(
            [x.numpy() for x in xs], [y.numpy() for y in moved], weighting, estimator
        )
        assert null[k, 0, 0] == pytest.approx(expected, abs=FLOAT64)


def test_chance_survives_merging_saving_and_loading(tmp_path):
    batches = [[torch.randn(8, 4), torch.randn(8, 3)] for _ in range(5)]
    whole, *parts = (MinibatchCKA(["x", "y"], permutations=9) for _ in range(3))
    for number, xs in enumerate(batches):
        whole.update(xs, index=number)
        parts[number % 2].update(xs, index=number)
    merged = parts[0].merge(parts[1])
    assert_close(merged.compute().null, whole.compute().null, FLOAT64)
    loaded = MinibatchCKA(["x", "y"], permutations=9)
    loaded.load_state_dict(merged.state_dict())
    result = loaded.compute()
    assert np.array_equal(result.null, merged.compute().null)
    again = fastcka.CKAResult.load(result.save(tmp_path / "result"))
    assert np.array_equal(again.null, result.null)
    assert np.array_equal(again.p_values(), result.p_values())
    with pytest.raises(ValueError, match="cannot merge: `permutations` is 9 here, but 0 there"):
        merged.merge(MinibatchCKA(["x", "y"]).update(batches[0], index=9))


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_layers_without_a_value_have_no_p_value_and_no_part_in_a_statistic(noise):
    x, y, still = torch.randn(24, 4), torch.randn(24, 3), torch.ones(24, 4)
    # Rounding that differs from example to example is no variation.
    still = still + noise * torch.randint(0, 2, still.shape)
    names = ["x", *(f"still{i}" for i in range(9))]
    cka = MinibatchCKA(names, ["y"], permutations=99)
    with pytest.warns(fastcka.CKAWarning, match="constant"):
        result = cka.update([x, *[still] * 9], [y]).compute()
    alone = MinibatchCKA(["x"], ["y"], permutations=99).update([x], [y]).compute()
    assert np.isnan(result.p_values())[:, 0].tolist() == [False] + 9 * [True]
    assert np.isnan(result.calibrated())[:, 0].tolist() == [False] + 9 * [True]
    for statistic in (np.nanmax, np.nanmean):
        assert result.p_value_of(statistic) == alone.p_value_of(statistic)


def test_images_that_come_again_are_refused():
    from networks import images, net

    with pytest.raises(ValueError, match="`calibrate` needs one pass, but `passes` is 2"):
        fastcka.compare(net(), data=[images(8)], layers_a="leaves", calibrate=True, passes=2)


def test_compare_takes_the_number_of_permutations():
    from networks import images, net

    data = images(40).split(10)
    usual = fastcka.compare(net(), net(seed=1), data, layers_a="leaves")
    result = fastcka.compare(net(), net(seed=1), data, layers_a="leaves", calibrate=True)
    assert result.null.shape == (200, *usual.cka.shape)
    assert np.array_equal(result.cka, usual.cka)
    assert usual.null is None
    several = fastcka.compare_many(
        {"a": net(), "b": net(seed=1)}, data, layers="leaves", calibrate=20
    )
    assert all(len(one.null) == 20 for one in several.values())
    table = result.to_pandas()
    assert np.array_equal(table.p_value, result.p_values().ravel())
    assert np.array_equal(table.calibrated, result.calibrated().ravel())
    assert list(usual.to_pandas().columns) == ["layer_a", "layer_b", "cka", "stderr"]
    assert result.to_xarray().p_value.shape == usual.cka.shape
