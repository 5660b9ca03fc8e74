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
@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2)])
def test_permuting_the_packed_triangle_is_permuting_the_examples(estimator, rows, columns):
    n = 9
    xs = [torch.randn(n, 4).double() for _ in range(rows)]
    ys = [torch.randn(n, 5).double() for _ in range(columns)]
    a, b = (gram_finish(layers, estimator=estimator).packed for layers in (xs, ys))
    found = permuted_products(a, b, n, estimator, 6, number=3)
    # The orders that were drawn, found again by what they do to one-hot examples.
    random = np.random.default_rng((n, 3))
    for k in range(6):
        order = torch.from_numpy(random.permutation(n))
        if rows < columns:
            moved = gram_finish([x[order] for x in xs], estimator=estimator).packed
            expected = moved @ b.T
        else:
            moved = gram_finish([y[order] for y in ys], estimator=estimator).packed
            expected = a @ moved.T
        assert_close(found[k], expected, FLOAT64 * float(expected.abs().max()))


def test_p_values_count_what_is_as_large():
    null = np.array([[0.1], [0.2], [0.3], [0.4]])
    assert p_values(np.array([0.5]), null) == [1 / 5]
    assert p_values(np.array([0.3]), null) == [3 / 5]
    assert p_values(np.array([0.0]), null) == [1]
    assert np.isnan(p_values(np.array([np.nan]), null)).all()
    cells = np.array([[[0.1, 0.9]], [[0.5, 0.2]], [[0.3, 0.3]]])  # the largest: 0.9, 0.5, 0.3
    assert p_value_of(np.max, np.array([[0.4, 0.6]]), cells) == 2 / 4


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


def test_chance_is_the_ratio_of_sums_over_permuted_batches():
    xs, ys = ([torch.randn(8, p).double() for _ in range(3)] for p in (4, 5))
    cka = MinibatchCKA(["x"], ["y"], permutations=7)
    for number, (x, y) in enumerate(zip(xs, ys, strict=True)):
        cka.update([x], [y], index=number)
    orders = [np.random.default_rng((8, number)) for number in range(3)]
    null = cka.compute().null
    for k in range(7):
        moved = [y[random.permutation(8)] for y, random in zip(ys, orders, strict=True)]
        expected = minibatch([x.numpy() for x in xs], [y.numpy() for y in moved])
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


def test_layers_without_a_value_have_no_p_value():
    cka = MinibatchCKA(["x", "constant"], permutations=9)
    cka.update([torch.randn(8, 4), torch.ones(8, 4)])
    with pytest.warns(fastcka.CKAWarning, match="constant"):
        result = cka.compute()
    assert np.isnan(result.p_values()).tolist() == [[False, True], [True, True]]
    assert np.isnan(result.calibrated()).tolist() == [[False, True], [True, True]]


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
