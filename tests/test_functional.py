import subprocess
import sys

import numpy as np
import pytest
import torch
from data import DTYPES, as_float64, defined_cka, related
from tolerance import CKA, FLOAT64, HSIC, assert_close

import fastcka
from fastcka import CKAWarning, centred_rows, stored_features
from fastcka.centred_rows import CentredRows, GaussianRows
from fastcka.maths import gram, hsic

ESTIMATORS = ["unbiased", "biased"]


def reference_data():
    np.random.seed(1337)
    x = np.random.randn(100, 10)
    return x, np.random.randn(100, 10) + x


def test_cka_gives_the_reference_numbers():
    x, y = reference_data()
    assert_close(fastcka.cka(x, y, estimator="biased"), 0.5576132566, 0.5e-10)
    assert_close(fastcka.cka(x, y), 0.5134564895, 0.5e-10)
    rbf = fastcka.cka(x, y, gram="rbf", bandwidth=0.5, estimator="biased")
    assert_close(rbf, 0.6548311823, 0.5e-10)


def one_batch(x, y, estimator):
    return stored_features._one_batch(x, y, estimator, "linear", None)[0]


def row_blocks(x, y, estimator):
    a, b = CentredRows(x), CentredRows(y)
    return stored_features.InnerProducts(
        x.shape[0],
        *(stored_features._row_blocks(a, b, estimator)[name].value for name in ("xy", "xx", "yy")),
        False,
        False,
    )


def feature_space(x, y, estimator):
    a, b = CentredRows(x), CentredRows(y)
    pairs = ((a, b), (a, a), (b, b))
    values = [stored_features._feature_space(*pair, estimator).value for pair in pairs]
    return stored_features.InnerProducts(x.shape[0], *values, False, False)


@pytest.mark.parametrize("route", [one_batch, row_blocks, feature_space])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(40, 7, 90), (40, 90, 60), (5, 1, 3)])
def test_every_route_gives_the_inner_products_of_the_definition(
    monkeypatch, route, estimator, shape
):
    monkeypatch.setattr(centred_rows, "ROWS", 16)
    monkeypatch.setattr(centred_rows, "FEATURES", 11)
    monkeypatch.setattr(centred_rows, "CHUNK", 13)
    x, y = related(*shape)
    x, y = x + 10, y - 3
    k, l_ = gram.linear(x.numpy()), gram.linear(y.numpy())
    of = hsic.biased if estimator == "biased" else hsic.unbiased_by_centring
    n = shape[0]
    factor = (n - 1) ** 2 if estimator == "biased" else n * (n - 3)
    products = route(x, y, estimator)
    for actual, pair in zip(products[1:4], ((k, l_), (k, k), (l_, l_)), strict=True):
        expected = of(*pair) * factor
        scale = factor * of(k, k) ** 0.5 * of(l_, l_) ** 0.5
        assert_close(actual / scale, expected / scale, FLOAT64)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("p", "q"), [(7, 9), (7, 90), (90, 7), (90, 80)])
@pytest.mark.parametrize("limit", [16, 2048])
@pytest.mark.parametrize("gram", [{}, {"gram": "rbf"}, {"gram": "rbf", "bandwidth": 0.4}])
def test_the_sizes_choose_a_route_but_not_the_number(monkeypatch, estimator, p, q, limit, gram):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    monkeypatch.setattr(centred_rows, "ROWS", 16)
    x, y = related(41, p, q)
    expected = defined_cka(x, y, estimator=estimator, **gram)
    # The median of the distances is found to float32 where they are not all held.
    tolerance = 1e-7 if gram else FLOAT64
    assert_close(fastcka.cka(x, y, estimator=estimator, **gram), expected, tolerance)


@pytest.mark.parametrize("n", [40, 41])
@pytest.mark.parametrize("duplicates", [False, True])
def test_the_median_in_blocks_is_the_median(monkeypatch, n, duplicates):
    monkeypatch.setattr(centred_rows, "ROWS", 16)
    x = related(n, 12, 3)[0]
    if duplicates:
        x[: n - 5] = x[0]
    rows = GaussianRows(x, 1.0)
    d2 = ((x[:, None] - x) ** 2).sum(-1).numpy()
    assert_close(rows.median_of_squared_distances() / rows.scale**2, np.median(d2), 2e-7 * d2.max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "p", "q"), [(60, 300, 70), (300, 60, 20), (60, 20, 300)])
def test_cka_is_the_definition_on_the_values_as_received(dtype, n, p, q):
    x, y = related(n, p, q, dtype=dtype)
    assert_close(fastcka.cka(x + 2, y), defined_cka(x + 2, y), CKA)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("grams", ["linear", "rbf"])
def test_hsic_carries_the_normaliser_of_its_estimator(estimator, grams):
    x, y = related(31, 20, 60, dtype=torch.float32)
    k, l_ = (getattr(gram, grams)(as_float64(side)) for side in (x, y))
    of = hsic.biased if estimator == "biased" else hsic.unbiased_by_centring
    actual = fastcka.hsic(x, y, estimator=estimator, gram=grams)
    assert_close(actual / of(k, l_), 1.0, HSIC)


def test_numpy_and_torch_of_all_kinds_give_the_same_number():
    x, y = (side.numpy().astype(np.float32) for side in related(50, 20, 30))
    expected = fastcka.cka(x, y)
    read_only = x.copy()
    read_only.flags.writeable = False
    big_endian = x.astype(">f4")
    for variant in (torch.from_numpy(x), read_only, big_endian, np.asfortranarray(x), x[::1]):
        assert_close(fastcka.cka(variant, y), expected, 1e-12)
    reversed_rows = fastcka.cka(x[::-1], y[::-1])
    assert_close(reversed_rows, expected, 1e-7)
    assert_close(fastcka.cka(x.reshape(50, 4, 5), y), expected, 1e-12)
    assert_close(fastcka.cka(x.astype(np.float64), torch.from_numpy(y)), expected, 1e-7)


@pytest.mark.parametrize("limit", [16, 2048])
@pytest.mark.parametrize("grams", ["linear", "rbf"])
def test_inputs_are_not_changed(monkeypatch, limit, grams):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    for p in (9, 90):
        x, y = related(40, p, 12)
        copies = x.clone(), y.clone()
        fastcka.cka(x, y, gram=grams)
        assert torch.equal(x, copies[0])
        assert torch.equal(y, copies[1])


def test_a_representation_with_itself_is_exactly_one():
    for shape in ((50, 9), (50, 900)):
        x = np.random.randn(*shape)
        assert fastcka.cka(x, x) == 1
        assert fastcka.cka(x, x, estimator="biased") == 1
        assert fastcka.cka(x, x, gram="rbf") == 1


BAD = {
    "constant": np.full((50, 9), 2.5),
    "equal rows": np.tile(np.random.default_rng(0).normal(size=(1, 9)), (50, 1)),
    "zero": np.zeros((50, 9)),
    "one example differs": np.vstack([np.ones((1, 9)), np.zeros((49, 9))]),
    "inf": np.vstack([np.full((1, 9), np.inf), np.random.default_rng(0).normal(size=(49, 9))]),
    "nan": np.vstack([np.full((1, 9), np.nan), np.random.default_rng(0).normal(size=(49, 9))]),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("width", [1, 30])
@pytest.mark.parametrize("limit", [16, 2048])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("grams", ["linear", "rbf"])
def test_a_representation_without_a_value_is_nan_and_named(
    monkeypatch, kind, width, limit, side, grams
):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    bad, good = np.tile(BAD[kind], (1, width)), np.random.default_rng(1).normal(size=(50, 80))
    pair = (bad, good) if side == "x" else (good, bad)
    message = "holds inf or NaN" if kind in ("inf", "nan") else "is constant"
    with pytest.warns(CKAWarning, match=f"`{side}` {message}"):
        assert np.isnan(fastcka.cka(*pair, gram=grams))
    if kind in ("inf", "nan"):
        assert np.isnan(fastcka.hsic(*pair, gram=grams))
        assert np.isnan(fastcka.hsic(*pair, gram=grams, estimator="biased"))


@pytest.mark.parametrize("limit", [16, 2048])
@pytest.mark.parametrize("p", [10, 90])
def test_equal_rows_have_an_hsic_of_exactly_zero(monkeypatch, limit, p):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    x = torch.randn(1, p, dtype=torch.float64).expand(49, p)
    for estimator in ESTIMATORS:
        assert fastcka.hsic(x, x, estimator=estimator) == 0


@pytest.mark.parametrize("limit", [16, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "p"), [(100, 10), (60, 900)])
@pytest.mark.parametrize("size", [1e3, 1e5, 1e6])
def test_an_example_that_dominates_costs_no_digits(monkeypatch, limit, dtype, n, p, size):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    x, y = related(n, p, p)
    x[3] *= size
    y[3] *= size
    x, y = x.to(dtype), y.to(dtype)
    assert_close(fastcka.cka(x, y), defined_cka(x, y), CKA)


@pytest.mark.parametrize("limit", [16, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("equal", [10, 30, 45])
def test_equal_examples_do_not_disturb_rbf(monkeypatch, limit, dtype, equal):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    x, y = related(50, 30, 20, dtype=dtype)
    x, y = x + 3, y.clone()
    x[:equal], y[2 : equal - 2] = x[0].clone(), y[2].clone()
    assert_close(fastcka.cka(x, y, gram="rbf"), defined_cka(x, y, gram="rbf"), CKA)


@pytest.mark.parametrize("limit", [16, 2048])
def test_products_stay_float32_whatever_the_user_allows_elsewhere(monkeypatch, limit):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    x, y = related(50, 300, 400, dtype=torch.float32)
    expected = fastcka.cka(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastcka.cka(x, y) == expected


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("limit", [16, 2048])
def test_float32_of_any_size_keeps_its_cka(monkeypatch, scale, limit):
    monkeypatch.setattr(stored_features, "ONE_BATCH", limit)
    for p in (20, 200):
        x, y = related(50, p, 30, dtype=torch.float32)
        for grams in ("linear", "rbf"):
            expected = fastcka.cka(x, y, gram=grams)
            assert_close(fastcka.cka(x * scale, y / scale, gram=grams), expected, CKA)


MEMORY = """
import resource, sys
import numpy as np
import fastcka
n, p, q = (int(word) for word in sys.argv[1:4])
rng = np.random.default_rng(0)
x = rng.standard_normal((n, p), dtype=np.float32).astype(sys.argv[4])
y = rng.standard_normal((n, q), dtype=np.float32).astype(sys.argv[4])
shared = min(p, q)
y[:, :shared] += x[:, :shared]
fastcka.cka(x[:64], y[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = fastcka.cka(x, y)
print(repr(value), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)

def centred(x):
    x = x.astype(np.float64)
    return x - x.mean(0)

def product(a, b):  # the definition, written out for large n: by examples or by features
    k, l = (a**2).sum(1), (b**2).sum(1)
    if min(a.shape[1], b.shape[1]) < n:
        cross = ((a.T @ b) ** 2).sum()
    else:
        cross = ((a @ a.T) * (b @ b.T)).sum()
    return cross - n / (n - 2) * k @ l + k.sum() * l.sum() / ((n - 1) * (n - 2))

a, b = centred(x), centred(y)
print(repr(float(product(a, b) / np.sqrt(product(a, a) * product(b, b)))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "p", "q", "dtype", "tolerance"),
    [
        (50_000, 768, 2048, "float32", FLOAT64),
        (5_000, 6_000, 7_000, "float32", CKA),
        (2_100, 100_000, 100, "float16", CKA),
    ],
)
def test_stored_features_are_exact_in_less_than_a_gigabyte_beyond_them(n, p, q, dtype, tolerance):
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEMORY, *map(str, (n, p, q, dtype))],
        capture_output=True,
        text=True,
        check=True,
    )
    value, gigabytes, expected = map(float, done.stdout.split())
    assert_close(value, expected, tolerance)
    assert gigabytes < 1
