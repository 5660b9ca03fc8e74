"""The definitions agree with each other, with hand-computed values and with reference numbers."""

import doctest
import importlib
import itertools
import math

import numpy as np
import pytest

from fastcka.maths import cka, finish, gram, hsic, influence

EPS = np.finfo(np.float64).eps

# Two routes to one number differ by their roundings alone. The longest sum has n^2 = 1e4 terms, and
# a rounding of eps in each, all of one sign, would make 1e4 eps of the largest term.
SAME = 1e4 * EPS

# Reference numbers are known to half of their last printed digit.
TEN_DIGITS = 0.5e-10
SIX_DIGITS = 0.5e-6

SHAPES = [(4, 1, 1), (4, 3, 5), (5, 1, 7), (5, 7, 2), (7, 13, 4), (7, 2, 33)]
ESTIMATORS = ["unbiased", "biased"]
GRAMS = ["linear", "rbf"]

UNBIASED_ROUTES = [
    hsic.unbiased_by_tuples,
    hsic.unbiased_by_song,
    hsic.unbiased_by_centring,
]


def assert_same(actual, expected, scale=1.0):
    """Compare with a tolerance relative to ``scale``, the size of the terms that were summed."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=SAME * scale)


def layers(n, p, q):
    """Two related layers."""
    rng = np.random.default_rng([n, p, q])
    x = rng.standard_normal((n, p))
    return x, x @ rng.standard_normal((p, q)) + rng.standard_normal((n, q))


def symmetric(n, seed):
    """Any symmetric matrix: no Gram matrix of anything, its diagonal of no meaning."""
    a = np.random.default_rng([n, seed]).standard_normal((n, n))
    return a + a.T


def gram_pairs(n, p, q):
    x, y = layers(n, p, q)
    yield gram.linear(x), gram.linear(y)
    yield gram.rbf(x), gram.rbf(y, bandwidth=0.5)
    yield symmetric(n, 1), symmetric(n, 2)


def size(k, other):
    return np.linalg.norm(k) * np.linalg.norm(other)


@pytest.fixture(scope="module")
def reference():
    # The legacy generator: the reference numbers were made with it.
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    return x, random.randn(100, 10) + x


def batches_of(size, x, y):
    starts = range(0, len(x), size)
    return [x[i : i + size] for i in starts], [y[i : i + size] for i in starts]


# --- the same definitions as explicit sums ---


def linear_by_loops(x):
    n, p = x.shape
    mean = [sum(x[i, a] for i in range(n)) / n for a in range(p)]
    k = np.zeros((n, n))
    for i, j, a in itertools.product(range(n), range(n), range(p)):
        k[i, j] += (x[i, a] - mean[a]) * (x[j, a] - mean[a])
    return k


def rbf_by_loops(x, bandwidth):
    n, p = x.shape
    squared = np.zeros((n, n))
    for i, j, a in itertools.product(range(n), range(n), range(p)):
        squared[i, j] += (x[i, a] - x[j, a]) ** 2
    in_order = sorted(squared.ravel())
    median = (in_order[(n * n - 1) // 2] + in_order[n * n // 2]) / 2
    sigma = bandwidth * math.sqrt(median)
    return np.array([[math.exp(-d / (2 * sigma**2)) for d in row] for row in squared])


def biased_by_loops(k, other):
    """Gretton's V-statistic: sample means for expectations, n^2 changed to (n-1)^2."""
    n = len(k)
    pairs = sum(k[i, j] * other[i, j] for i in range(n) for j in range(n))
    totals = sum(k.ravel()) * sum(other.ravel())
    chains = sum(k[i, j] * other[i, q] for i in range(n) for j in range(n) for q in range(n))
    return (pairs + totals / n**2 - 2 * chains / n) / (n - 1) ** 2


def unbiased_by_loops(k, other):
    """Means over distinct pairs, two disjoint pairs and chains, each counted on its own."""
    pairs, totals, chains = [], [], []
    for i, j in itertools.permutations(range(len(k)), 2):
        pairs.append(k[i, j] * other[i, j])
        rest = [a for a in range(len(k)) if a not in (i, j)]
        for q in rest:
            chains.append(k[i, j] * other[i, q])
            totals.extend(k[i, j] * other[q, r] for r in rest if r != q)
    return np.mean(pairs) + np.mean(totals) - 2 * np.mean(chains)


def u_centre_by_loops(k):
    n = len(k)
    rows = [sum(k[i, j] for j in range(n) if j != i) for i in range(n)]
    total = sum(rows)
    u = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        u[i, j] = k[i, j] - (rows[i] + rows[j]) / (n - 2) + total / ((n - 1) * (n - 2))
    return u


# --- Gram matrices ---


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_gram_is_the_sum_over_centred_features(shape):
    x, _ = layers(*shape)
    assert_same(gram.linear(x), linear_by_loops(x), scale=np.sum(x**2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 2.0])
def test_rbf_gram_is_its_formula_with_the_median_over_the_whole_matrix(shape, bandwidth):
    x, _ = layers(*shape)
    assert_same(gram.rbf(x, bandwidth), rbf_by_loops(x, bandwidth))


def test_rbf_median_counts_the_zeros_of_the_diagonal():
    x = np.array([[0.0], [1.0], [3.0]])  # squared distances 0 0 0, 1 1, 4 4, 9 9: median 1
    np.testing.assert_allclose(gram.rbf(x)[0, 1:], np.exp([-0.5, -4.5]), rtol=SAME)


def test_rbf_of_bandwidth_zero_is_the_limit():
    x = np.array([[0.0], [1.0], [0.0], [5.0]])
    limit = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(gram.rbf(x, bandwidth=0.0), limit)
    np.testing.assert_array_equal(gram.rbf(x, bandwidth=1e-3), limit)


def test_rbf_of_median_zero_is_the_limit():
    x = np.array([[2.0], [2.0], [2.0], [5.0]])  # 10 of the 16 distances are zero
    k = gram.rbf(x)
    np.testing.assert_array_equal(k[3], [0, 0, 0, 1])
    np.testing.assert_array_equal(k[:3, :3], np.ones((3, 3)))


def test_rbf_of_near_neighbours_far_from_the_origin_keeps_its_digits():
    x = np.arange(5.0)[:, None]
    np.testing.assert_array_equal(gram.rbf(x + 2.0**40), gram.rbf(x))


def test_rbf_cka_tends_to_linear_cka_as_the_bandwidth_grows():
    x, y = layers(7, 13, 4)
    for bandwidth in (1e2, 1e3):
        # The next term of exp is of the order d^2 / sigma^2, a few times 1 / bandwidth^2.
        difference = cka.cka(x, y, gram="rbf", bandwidth=bandwidth) - cka.cka(x, y)
        assert 0 < abs(difference) < 10 / bandwidth**2


def test_values_are_taken_to_float64_before_anything_else():
    x = np.array([[300.0], [0.0], [-300.0]], dtype=np.float16)  # 300^2 overflows float16
    np.testing.assert_array_equal(np.diag(gram.linear(x)), [90000, 0, 90000])
    counts = np.array([[255], [0]], dtype=np.uint8)  # unsigned differences would wrap around
    np.testing.assert_allclose(gram.rbf(counts), gram.rbf([[255.0], [0.0]]), rtol=0)
    k, other = (symmetric(5, seed).astype(np.float32) for seed in (11, 12))
    for route in (hsic.biased, *UNBIASED_ROUTES):
        assert route(k, other) == route(k.astype(np.float64), other.astype(np.float64))


# --- centring and packing ---


@pytest.mark.parametrize("shape", SHAPES)
def test_double_centring_makes_rows_and_columns_sum_to_zero(shape):
    for k, _ in gram_pairs(*shape):
        centred = finish.double_centre(k)
        assert_same(centred.sum(axis=0), 0, scale=np.linalg.norm(k))
        assert_same(centred.sum(axis=1), 0, scale=np.linalg.norm(k))
        means = k.mean(axis=0)
        by_means = k - means[:, None] - means[None, :] + k.mean()
        assert_same(centred, by_means, scale=np.linalg.norm(k))


@pytest.mark.parametrize("shape", SHAPES)
def test_u_centring_is_its_formula_and_makes_rows_sum_to_zero(shape):
    for k, _ in gram_pairs(*shape):
        u = finish.u_centre(k)
        np.testing.assert_array_equal(np.diag(u), 0)
        assert_same(u.sum(axis=1), 0, scale=np.linalg.norm(k))
        assert_same(u, u_centre_by_loops(k), scale=np.linalg.norm(k))


@pytest.mark.parametrize("n", [4, 5, 7])
def test_u_centring_is_the_orthogonal_projection_onto_zero_row_sums(n):
    # The projection by linear algebra: least squares on the n matrices with entries u_i + u_j.
    i, j = np.tril_indices(n, -1)
    basis = np.eye(n)[i] + np.eye(n)[j]
    k = symmetric(n, 3)
    residual = k[i, j] - basis @ np.linalg.lstsq(basis, k[i, j], rcond=None)[0]
    assert_same(finish.u_centre(k)[i, j], residual, scale=np.linalg.norm(k))
    assert len(i) - np.linalg.matrix_rank(basis) == n * (n - 3) / 2


@pytest.mark.parametrize("n", [4, 5, 7])
def test_a_term_common_to_a_row_and_its_column_changes_nothing(n):
    k = symmetric(n, 4)
    u = np.random.default_rng(n).standard_normal(n)
    shifted = k + u[:, None] + u[None, :]
    scale = np.linalg.norm(k) + np.linalg.norm(shifted)
    assert_same(finish.u_centre(shifted), finish.u_centre(k), scale)
    assert_same(finish.double_centre(shifted), finish.double_centre(k), scale)
    assert_same(finish.u_centre(finish.double_centre(k)), finish.u_centre(k), scale)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_inner_product_of_packed_vectors_is_the_sum_over_all_entries(shape, estimator):
    n = shape[0]
    for k, other in gram_pairs(*shape):
        a, b = finish.pack(k, estimator), finish.pack(other, estimator)
        if estimator == "unbiased":
            assert a.shape == (n * (n - 1) // 2,)
            assert_same(a @ b, n * (n - 3) * hsic.unbiased_by_song(k, other), size(k, other))
        else:
            h = np.eye(n) - 1 / n
            assert a.shape == (n * (n + 1) // 2,)
            assert_same(a @ b, np.trace(k @ h @ other @ h), size(k, other))


def test_packing_goes_through_the_lower_triangle_row_by_row():
    k = symmetric(4, 5)
    u, c = finish.u_centre(k), finish.double_centre(k)
    root = math.sqrt(2)
    strict = [u[1, 0], u[2, 0], u[2, 1], u[3, 0], u[3, 1], u[3, 2]]
    assert_same(finish.pack(k, "unbiased") / root, strict)
    first_rows = [c[0, 0], root * c[1, 0], c[1, 1], root * c[2, 0], root * c[2, 1], c[2, 2]]
    assert_same(finish.pack(k, "biased")[:6], first_rows)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_recovers_the_gram_matrix(shape, estimator):
    for k, _ in gram_pairs(*shape):
        diagonal = np.diag(k)
        row_sums = k.sum(axis=1) - diagonal
        recovered = finish.unpack_gram(finish.pack(k, estimator), diagonal, row_sums, estimator)
        assert_same(recovered, k, scale=np.linalg.norm(k))


# --- HSIC ---


@pytest.mark.parametrize("route", UNBIASED_ROUTES, ids=lambda route: route.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_unbiased_route_is_the_explicit_sum(route, shape):
    for k, other in gram_pairs(*shape):
        assert_same(route(k, other), unbiased_by_loops(k, other), size(k, other))


@pytest.mark.parametrize("shape", SHAPES)
def test_biased_hsic_is_the_explicit_sum(shape):
    for k, other in gram_pairs(*shape):
        assert_same(hsic.biased(k, other), biased_by_loops(k, other), size(k, other))


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_feature_space_needs_no_gram_matrix(shape, offset):
    x, y = layers(*shape)
    k, other = gram.linear(x), gram.linear(y)
    x, y = x + offset, y - 2 * offset
    expected = unbiased_by_loops(k, other)
    assert_same(hsic.unbiased_in_feature_space(x, y), expected, size(k, other))
    expected = biased_by_loops(k, other)
    assert_same(hsic.biased_in_feature_space(x, y), expected, size(k, other))


def test_four_examples_by_hand():
    def link(i, j):
        k = np.zeros((4, 4))
        k[i, j] = k[j, i] = 1
        return k

    # U(link(0, 1)) is 1/3 on {01, 23} and -1/6 on the other four pairs. Both squares: 2 * (2 / 9 +
    # 4 / 36) = 2/3. Against U(link(0, 2)): 2 * (4 * (-1 / 18) + 2 / 36) = -1/3. Divided by 4 * 1.
    for route in (*UNBIASED_ROUTES, unbiased_by_loops):
        assert_same(route(link(0, 1), link(0, 1)), 1 / 6)
        assert_same(route(link(0, 1), link(2, 3)), 1 / 6)
        assert_same(route(link(0, 1), link(0, 2)), -1 / 12)
    centred = np.array([[-3, 5, -1, -1], [5, -3, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]]) / 8
    assert_same(finish.double_centre(link(0, 1)), centred)
    # tr(HKH L) picks the two entries of HKH where L is 1. Divided by 3^2.
    assert_same(hsic.biased(link(0, 1), link(0, 1)), 2 * (5 / 8) / 9)
    assert_same(hsic.biased(link(0, 1), link(2, 3)), 2 * (1 / 8) / 9)


@pytest.mark.parametrize("n", [4, 5, 7])
def test_identity_carries_nothing_unbiased_and_its_trace_biased(n):
    eye, other = np.eye(n), symmetric(n, 6)
    for route in UNBIASED_ROUTES:
        assert route(eye, eye) == 0
        assert route(eye, other) == 0
    assert_same(hsic.biased(eye, eye), 1 / (n - 1))
    assert_same(hsic.biased(eye, other), np.trace(finish.double_centre(other)) / (n - 1) ** 2, n)


@pytest.mark.parametrize("route", UNBIASED_ROUTES, ids=lambda route: route.__name__)
def test_unbiased_hsic_does_not_read_the_diagonals(route):
    k, other = symmetric(5, 7), symmetric(5, 8)
    before = route(k, other)
    np.fill_diagonal(k, 1e300)
    np.fill_diagonal(other, -1e300)
    assert route(k, other) == before


@pytest.mark.parametrize("n", [4, 5])
def test_unbiased_hsic_has_the_expectation_of_the_population_and_biased_has_not(n):
    # Three equally likely points; every sample of n draws, with repetition, is counted once.
    points = 3
    x, y = layers(points, 2, 1)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    k, other = x @ x.T, y @ y.T
    population = np.sum((x.T @ y / points) ** 2)
    samples = [np.ix_(s, s) for s in itertools.product(range(points), repeat=n)]
    for route in (hsic.unbiased_by_song, hsic.unbiased_by_centring):
        assert_same(np.mean([route(k[s], other[s]) for s in samples]), population, size(k, other))
    biased = np.mean([hsic.biased(k[s], other[s]) for s in samples])
    assert abs(biased - population) > 0.01 * population


@pytest.mark.parametrize("subset", [4, 5, 7])
def test_average_over_all_subsets_is_the_value_of_the_whole(subset):
    n = 8
    k, other = symmetric(n, 9), symmetric(n, 10)
    subsets = [np.ix_(s, s) for s in itertools.combinations(range(n), subset)]
    average = np.mean([hsic.unbiased_by_centring(k[s], other[s]) for s in subsets])
    assert_same(average, hsic.unbiased_by_centring(k, other), size(k, other))
    biased = np.mean([hsic.biased(k[s], other[s]) for s in subsets])
    assert abs(biased - hsic.biased(k, other)) > 0.01 * abs(biased)


def test_dropping_the_diagonal_without_u_centring_is_another_number():
    x, y = np.random.default_rng(0).standard_normal((2, 12, 200))  # independent
    k, other = finish.double_centre(gram.linear(x)), finish.double_centre(gram.linear(y))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(other, 0)
    naive = np.sum(k * other) / np.sqrt(np.sum(k * k) * np.sum(other * other))
    assert abs(cka.cka(x, y)) < 0.1
    assert naive > 0.6


# --- CKA ---


@pytest.mark.parametrize("gram_function", GRAMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_exactly_like_itself(shape, estimator, gram_function):
    x, _ = layers(*shape)
    assert cka.cka(x, x, estimator, gram_function) == 1.0


@pytest.mark.parametrize("gram_function", GRAMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cka_lies_between_minus_one_and_one_and_is_symmetric(shape, estimator, gram_function):
    x, y = layers(*shape)
    value = cka.cka(x, y, estimator, gram_function)
    assert -1 <= value <= 1
    assert_same(cka.cka(y, x, estimator, gram_function), value)


@pytest.mark.parametrize("gram_function", GRAMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rotation_scale_offset_and_a_common_order_change_nothing(estimator, gram_function):
    x, y = layers(7, 13, 4)
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((13, 13)))[0]
    order = rng.permutation(7)
    value = cka.cka(x, y, estimator, gram_function)
    moved = 1e3 * x @ rotation + rng.standard_normal(13)
    assert_same(cka.cka(moved, y, estimator, gram_function), value)
    assert_same(cka.cka(x[order], y[order], estimator, gram_function), value)


@pytest.mark.parametrize("gram_function", GRAMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_general_linear_map_changes_cka(estimator, gram_function):
    x, _ = layers(7, 13, 4)
    stretched = x * np.geomspace(0.01, 10, 13)
    assert cka.cka(x, stretched, estimator, gram_function) < 0.9


@pytest.mark.parametrize("gram_function", GRAMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shuffling_one_side_lowers_cka(reference, estimator, gram_function):
    x, y = reference
    shuffled = y[np.random.default_rng(0).permutation(len(y))]
    value = cka.cka(x, y, estimator, gram_function)
    assert cka.cka(x, shuffled, estimator, gram_function) < value - 0.3


def test_an_offset_costs_no_digits():
    x, y = layers(7, 13, 4)
    offset = 1e6
    moved = x + offset  # rounds the input itself by eps * offset
    assert abs(cka.cka(moved, y) - cka.cka(x, y)) < 10 * EPS * offset
    # The same without the mean subtracted first: the digits are gone before U-centring can help.
    naive = hsic.unbiased_by_centring(moved @ moved.T, y @ y.T)
    truth = hsic.unbiased_by_centring(x @ x.T, y @ y.T)
    assert abs(naive - truth) > 1e-6 * abs(truth)


@pytest.mark.parametrize("n", [4, 5, 7, 50])
def test_with_one_feature_each_biased_cka_is_the_squared_correlation(n):
    x, y = layers(n, 1, 1)
    assert_same(cka.cka(x, y, "biased"), np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2)


def test_unrelated_layers_may_have_a_negative_unbiased_cka():
    # Four examples split in halves in two uncorrelated ways: U is 1/3 on the two pairs that stay
    # together and -1/6 elsewhere, as for one linked pair.
    x, y = [[0], [0], [1], [1]], [[0], [1], [0], [1]]
    assert_same(cka.cka(x, y), -1 / 2)
    assert_same(cka.cka(x, y, "biased"), 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_direction_is_alike_however_many_features_repeat_it(estimator):
    x, _ = layers(7, 1, 1)
    assert_same(cka.cka(x, x @ np.array([[2.0, -1.0, 0.5]]), estimator), 1.0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_a_constant_layer_has_no_cka(value, estimator):
    x, _ = layers(7, 13, 4)
    constant = np.full((7, 3), value)
    assert math.isnan(cka.cka(x, constant, estimator))
    assert math.isnan(cka.cka(constant, x, estimator))
    assert math.isnan(cka.cka(constant, constant, estimator))


def test_independent_wide_layers_look_alike_to_the_biased_estimate_only():
    n, p, draws = 8, 64, 400
    rng = np.random.default_rng(0)
    xs, ys = rng.standard_normal((2, draws, n, p))
    # Over seeds these two have standard deviations of 0.002 and 0.008.
    assert abs(cka.minibatch(xs, ys, estimator="biased") - p / (p + n)) < 5 * 0.002
    assert abs(cka.minibatch(xs, ys, estimator="unbiased")) < 5 * 0.008


def test_population_cka_is_what_large_samples_tend_to():
    rng = np.random.default_rng(0)
    mix_x, mix_y = rng.standard_normal((6, 3)), rng.standard_normal((6, 4))
    population = cka.population_linear(mix_x.T @ mix_y, mix_x.T @ mix_x, mix_y.T @ mix_y)
    source = rng.standard_normal((4000, 6))
    xs, ys = batches_of(500, source @ mix_x, source @ mix_y)
    for estimator in ESTIMATORS:  # over seeds the standard deviation is 0.005
        assert abs(cka.minibatch(xs, ys, estimator=estimator) - population) < 5 * 0.005


def test_population_cka_of_a_finite_population_is_its_biased_cka():
    x, y = layers(7, 3, 5)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    population = cka.population_linear(x.T @ y, x.T @ x, y.T @ y)
    assert_same(cka.cka(x, y, "biased"), population)


# --- without one example ---


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [5, 6, 9])
def test_products_without_an_example_follow_from_those_with_it(n, estimator):
    centre = finish.u_centre if estimator == "unbiased" else finish.double_centre
    k, other = symmetric(n, 11), symmetric(n, 12)
    found = influence.product_without(k, other, estimator)
    for i in range(n):
        rest = np.ix_(*[[j for j in range(n) if j != i]] * 2)
        expected = np.sum(centre(k[rest]) * centre(other[rest]))
        assert_same(found[i], expected, size(k, other))


@pytest.mark.parametrize("n", [5, 8])
def test_unbiased_hsic_without_each_example_in_turn_has_the_mean_of_the_whole(n):
    k, other = symmetric(n, 13), symmetric(n, 14)
    without = influence.product_without(k, other, "unbiased") / ((n - 1) * (n - 4))
    assert_same(without.mean(), hsic.unbiased_by_centring(k, other), size(k, other))


@pytest.mark.parametrize("weighting", ["pairs", "equal"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_influence_is_cka_less_that_of_the_data_without_the_example(weighting, estimator):
    # Of linear Gram matrices, which know nothing of an example that is not theirs: from the data.
    xs, ys = zip(*[layers(n, 6, 3) for n in (7, 4, 5)], strict=True)
    options = {"weighting": weighting, "estimator": estimator}
    found = influence.influence(xs, ys, **options)
    assert found.shape == (16,)
    whole, place = cka.minibatch(xs, ys, **options), 0
    for batch in range(3):
        for i in range(len(xs[batch])):
            less = [
                [np.delete(z, i, 0) if b == batch else z for b, z in enumerate(of)]
                for of in (xs, ys)
            ]
            assert_same(found[place], whole - cka.minibatch(*less, **options))
            place += 1


def test_influence_of_a_gaussian_keeps_the_bandwidth_of_the_batch():
    x, y = layers(6, 3, 4)
    found = influence.influence([x], [y], gram="rbf", bandwidth=0.8)
    k, other = (rbf_by_loops(z, 0.8)[1:, 1:] for z in (x, y))
    parts = [(k, other), (k, k), (other, other)]
    without = cka.from_hsic(*(unbiased_by_loops(*part) for part in parts))
    assert_same(found[0], cka.cka(x, y, gram="rbf", bandwidth=0.8) - without)
    assert abs(found[0] - cka.cka(x, y, gram="rbf", bandwidth=0.8)) > 0.01


def test_no_example_changes_a_layer_with_itself_and_four_have_none_to_spare():
    x, y = layers(4, 3, 5)
    assert np.isnan(influence.influence([x], [y])).all()
    x, y = layers(6, 3, 5)
    assert_same(influence.influence([x], [2 * x + 1]), np.zeros(6))


# --- batches ---


@pytest.mark.parametrize("weighting", ["pairs", "equal"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("gram_function", GRAMS)
def test_minibatch_cka_is_one_ratio_of_weighted_sums(weighting, estimator, gram_function):
    sums = np.zeros(3)
    xs, ys = zip(*[layers(n, 6, 3) for n in (4, 9, 6)], strict=True)
    for x, y in zip(xs, ys, strict=True):
        n = len(x)
        k, other = [
            linear_by_loops(z) if gram_function == "linear" else rbf_by_loops(z, 0.7)
            for z in (x, y)
        ]
        h = unbiased_by_loops if estimator == "unbiased" else biased_by_loops
        weight = n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2
        weight = weight if weighting == "pairs" else 1
        sums += weight * np.array([h(k, other), h(k, k), h(other, other)])
    value = cka.minibatch(xs, ys, weighting, estimator, gram_function, bandwidth=0.7)
    assert_same(value, sums[0] / np.sqrt(sums[1] * sums[2]))


def test_one_batch_is_cka_itself():
    x, y = layers(7, 13, 4)
    for weighting, estimator, gram_function in itertools.product(
        ["pairs", "equal"], ESTIMATORS, GRAMS
    ):
        batched = cka.minibatch([x], [y], weighting, estimator, gram_function)
        assert_same(batched, cka.cka(x, y, estimator, gram_function))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batches_of_fewer_than_four_are_left_out(estimator):
    x, y = layers(11, 6, 3)
    for tail in (8, 9, 10, 11):
        value = cka.minibatch([x[:8], x[8:tail]], [y[:8], y[8:tail]], estimator=estimator)
        assert_same(value, cka.cka(x[:8], y[:8], estimator))
    with_tail = cka.minibatch([x[:7], x[7:]], [y[:7], y[7:]], estimator=estimator)
    assert abs(with_tail - cka.cka(x[:7], y[:7], estimator)) > 1e-3


def test_the_mean_of_per_batch_cka_lies_low(reference):
    x, y = reference
    rng = np.random.default_rng(0)
    xs, ys = [], []
    for _ in range(100):
        order = rng.permutation(len(x))
        more_xs, more_ys = batches_of(4, x[order], y[order])
        xs, ys = xs + more_xs, ys + more_ys
    mean_of_ratios = np.mean([cka.cka(a, b) for a, b in zip(xs, ys, strict=True)])
    # Over seeds the standard deviations are 0.005 and 0.01; the mean of ratios lies 0.09 below.
    assert abs(cka.minibatch(xs, ys) - cka.cka(x, y)) < 5 * 0.005
    assert mean_of_ratios < cka.cka(x, y) - 0.04


# --- reference numbers ---


def test_reference_values_of_two_arrays(reference):
    x, y = reference
    assert abs(cka.cka(x, y, "biased") - 0.5576132566) < TEN_DIGITS
    assert abs(cka.cka(x, y, "unbiased") - 0.5134564895) < TEN_DIGITS
    assert abs(cka.cka(x, y, "biased", "rbf", 0.5) - 0.6548311823) < TEN_DIGITS


def test_reference_values_in_feature_space(reference):
    x, y = reference
    for h, expected in (
        (hsic.biased_in_feature_space, 0.5576132566),
        (hsic.unbiased_in_feature_space, 0.5134564895),
    ):
        assert abs(cka.from_hsic(h(x, y), h(x, x), h(y, y)) - expected) < TEN_DIGITS


@pytest.mark.parametrize(
    ("batch", "pairs", "equal"),
    [
        (25, 0.513268, 0.513268),
        (20, 0.533718, 0.533718),
        (32, 0.502975, 0.459637),  # and a tail of 4
        (16, 0.492619, 0.469617),  # and a tail of 4
    ],
)
def test_reference_values_of_batches(reference, batch, pairs, equal):
    xs, ys = batches_of(batch, *reference)
    assert abs(cka.minibatch(xs, ys, "pairs") - pairs) < SIX_DIGITS
    assert abs(cka.minibatch(xs, ys, "equal") - equal) < SIX_DIGITS


# --- errors and examples ---


def test_unknown_names_are_refused_by_argument():
    x, y = layers(5, 3, 2)
    with pytest.raises(ValueError, match=r"estimator must be 'unbiased' or 'biased', got 'debia"):
        cka.cka(x, y, estimator="debiased")
    with pytest.raises(ValueError, match=r"gram must be 'linear' or 'rbf', got 'cosine'"):
        cka.cka(x, y, gram="cosine")
    with pytest.raises(ValueError, match=r"weighting must be 'pairs' or 'equal', got 'size'"):
        cka.minibatch([x], [y], weighting="size")
    with pytest.raises(ValueError, match=r"estimator must be 'unbiased' or 'biased', got None"):
        finish.pack(np.eye(4), None)
    with pytest.raises(ValueError, match=r"estimator must be 'unbiased' or 'biased', got ''"):
        finish.unpack_gram(np.zeros(6), np.zeros(4), np.zeros(4), "")


def test_too_few_examples_are_refused():
    k = np.eye(3)
    for route in UNBIASED_ROUTES:
        with pytest.raises(ValueError, match=r"needs at least 4 examples, got n=3"):
            route(k, k)
    with pytest.raises(ValueError, match=r"needs at least 4 examples, got n=3"):
        hsic.unbiased_in_feature_space(k, k)
    for h in (hsic.biased, hsic.biased_in_feature_space):
        with pytest.raises(ValueError, match=r"needs at least 2 examples, got n=1"):
            h([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"needs a batch of at least 4 examples, got none"):
        cka.minibatch([k, k], [k, k])


def test_shapes_that_do_not_fit_are_refused():
    for function in (gram.linear, gram.rbf):
        with pytest.raises(ValueError, match=r"x must be \[n, p\].* got shape \(2, 3, 4\)"):
            function(np.zeros((2, 3, 4)))
    for route in (hsic.biased, *UNBIASED_ROUTES):
        with pytest.raises(ValueError, match=r"one shape \[n, n\], got \(5, 5\) and \(6, 6\)"):
            route(np.eye(5), np.eye(6))
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        cka.minibatch([np.eye(4), np.eye(4)], [np.eye(4)])


@pytest.mark.parametrize("module", ["gram", "finish", "hsic", "cka", "influence"])
def test_examples_in_the_docstrings_run(module):
    module = importlib.import_module(f"fastcka.maths.{module}")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
