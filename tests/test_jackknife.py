"""Error bars: the formula, and that intervals cover the truth as often as they say."""

import numpy as np
import pytest
from tolerance import FLOAT64, assert_close

from fastcka.jackknife import Sums, add, ratio, standard_error
from fastcka.result import CKAResult


def blocks_of(k, rng, shape=(2, 3)):
    return [
        Sums(rng.normal(size=shape), 3 + rng.random(shape[0]), 3 + rng.random(shape[1]))
        for _ in range(k)
    ]


def test_ratio_is_exactly_one_on_a_diagonal_at_any_scale():
    for scale in (1e-200, 1e-20, 1.0, 1e20, 1e200):
        h = np.random.default_rng(0).random(200) * scale
        assert (ratio(Sums(np.diag(h), h, h)).diagonal() == 1).all()


def test_ratio_is_not_clipped_and_is_nan_without_a_norm():
    sums = Sums(np.array([[-1.0, 3.0], [1.0, 1.0]]), np.array([1.0, 0.0]), np.array([4.0, 1.0]))
    np.testing.assert_array_equal(ratio(sums), [[-0.5, 3.0], [np.nan, np.nan]])


@pytest.mark.parametrize("k", [2, 3, 10])
def test_standard_error_is_that_of_leaving_out_one_block(k):
    blocks = blocks_of(k, np.random.default_rng(1))
    thetas = []
    for left_out in range(k):
        rest = [block for i, block in enumerate(blocks) if i != left_out]
        ab, aa, bb = (sum(block[i] for block in rest) for i in range(3))
        thetas.append(ab / np.sqrt(np.outer(aa, bb)))
    thetas = np.array(thetas)
    expected = np.sqrt((k - 1) / k * ((thetas - thetas.mean(0)) ** 2).sum(0))
    assert_close(standard_error(blocks), expected, FLOAT64)


def test_one_block_has_no_standard_error():
    assert np.isnan(standard_error(blocks_of(1, np.random.default_rng(2)))).all()


def test_interval_uses_students_quantile_with_one_degree_less_than_blocks():
    stderr = np.array([[0.1]])
    result = CKAResult(
        np.array([[0.5]]), stderr, *[stderr] * 3, ("a",), ("b",), 100, 30, (), {"n_blocks": 10}
    )
    low, high = result.ci(0.95)
    assert_close(high - 0.5, [[0.2262157]], 1e-7)  # t with 9 degrees of freedom: 2.262157
    assert_close(0.5 - low, [[0.2262157]], 1e-7)
    single = CKAResult(
        np.array([[0.5]]), stderr * np.nan, *[stderr] * 3, ("a",), ("b",), 10, 1, (),
        {"n_blocks": 1},
    )  # fmt: skip
    assert np.isnan(single.ci()).all()
    with pytest.raises(ValueError, match="`level` must lie between 0 and 1, but is 95"):
        result.ci(95)


def inner_products(x, y):
    """n(n−3) HSIC_1 of many batches at once, x and y [..., n, p], by the feature-space form."""
    n = x.shape[-2]
    x, y = x - x.mean(-2, keepdims=True), y - y.mean(-2, keepdims=True)
    k, l_ = (x**2).sum(-1), (y**2).sum(-1)
    cross = ((np.swapaxes(x, -1, -2) @ y) ** 2).sum((-1, -2))
    own = n / (n - 2) * (k * l_).sum(-1)
    return cross - own + k.sum(-1) * l_.sum(-1) / ((n - 1) * (n - 2))


def simulate(k, n, tail, cka, weighting, seed, repetitions, p=10):
    """Repeated measurements of one true CKA -> how often the interval covers it, and SE / SD.

    x is white noise and y has the fraction `cka` of its variance from x: the covariance of x and y
    is √cka times that of each, and the CKA of the population is `cka`.
    """
    rng = np.random.default_rng(seed)
    covered, estimates, errors = 0, [], []
    together = 20  # repetitions as layers of one result, of which the diagonal counts
    names = tuple(map(str, range(together)))
    for _ in range(repetitions // together):
        blocks = []
        for size, count in ((n, k - (tail > 0)), (tail, int(tail > 0))):
            x, e = rng.standard_normal((2, count, together, size, p))
            y = cka**0.5 * x + (1 - cka) ** 0.5 * e
            factor = 1.0 if weighting == "pairs" or not count else 1.0 / (size * (size - 3))
            if count:
                xy, xx, yy = (inner_products(a, b) * factor for a, b in ((x, y), (x, x), (y, y)))
                blocks += [Sums(np.diag(xy[j]), xx[j], yy[j]) for j in range(count)]
        result = CKAResult(
            ratio(add(blocks)), standard_error(blocks), *[xy] * 3, names, names, k * n, k, (),
            {"n_blocks": k},
        )  # fmt: skip
        low, high = (bound.diagonal() for bound in result.ci(0.95))
        covered += np.count_nonzero((low <= cka) & (cka <= high))
        estimates.extend(result.cka.diagonal())
        errors.extend(result.stderr.diagonal())
    return covered / repetitions, np.sqrt(np.mean(np.square(errors))) / np.std(estimates)


CELLS = [
    # seed, n, k, tail, CKA of the population, weighting
    (100, 32, 10, 0, 0.3, "pairs"),
    (101, 32, 10, 4, 0.8, "pairs"),
    (102, 32, 10, 8, 0.95, "pairs"),
    (103, 32, 10, 16, 0.05, "pairs"),
    (104, 32, 10, 0, 0.0, "pairs"),
    (105, 32, 20, 16, 0.5, "pairs"),
    (106, 16, 10, 8, 0.99, "pairs"),
    (107, 32, 50, 4, 0.3, "pairs"),
    (200, 32, 10, 16, 0.3, "equal"),
    (201, 32, 20, 16, 0.8, "equal"),
]


@pytest.mark.parametrize(("seed", "n", "k", "tail", "cka", "weighting"), CELLS)
def test_intervals_cover_the_truth_as_often_as_they_say(seed, n, k, tail, cka, weighting):
    repetitions = 4000 if k < 50 else 2000
    coverage, calibration = simulate(k, n, tail, cka, weighting, seed, repetitions)
    # The Monte-Carlo error of a coverage of 0.95 is 0.0035 (0.005 for k = 50), of SE / SD 0.015.
    assert 0.93 <= coverage <= 0.97, f"covered {coverage}"
    assert 0.93 <= calibration <= 1.07, f"SE / SD is {calibration}"


def test_the_closed_form_of_the_simulation_is_the_definition():
    from fastcka.maths import gram, hsic

    x, y = np.random.default_rng(0).normal(size=(2, 9, 5))
    expected = hsic.unbiased_by_centring(gram.linear(x), gram.linear(y)) * 9 * 6
    assert_close(inner_products(x, y), expected, FLOAT64)
