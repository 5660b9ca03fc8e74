"""Measures beside CKA: against their definitions on the activations, and in closed form."""

import numpy as np
import pytest
import torch
from tolerance import CKA, FLOAT64, ROOTS, assert_close

import fastcka
from fastcka import MinibatchCKA
from fastcka.gram_stack import GramStack
from fastcka.maths import measures as definition
from fastcka.maths.gram import linear, rbf
from fastcka.measures import NEIGHBOURS, OF_LAYERS, OF_PAIRS, grams

EVERY = [*OF_PAIRS, *OF_LAYERS]
DEFINED = {
    "rsa_cosine": lambda x, y: definition.rsa(x, y, "cosine"),
    "rsa_correlation": lambda x, y: definition.rsa(x, y, "correlation"),
    "mutual_knn": lambda x, y: definition.mutual_knn(x, y, NEIGHBOURS),
    "cknna": lambda x, y: definition.cknna(x, y, NEIGHBOURS),
    "procrustes": definition.procrustes,
    "participation_ratio": definition.participation_ratio,
    "effective_rank": definition.effective_rank,
}


def batches(count=2, n=24, dtype=torch.float64):
    """Layers that share directions; a mean that is not 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(count):
        shared = normal(n, 3)
        found.append([(shared @ normal(3, p) + normal(n, p) + 5).to(dtype) for p in (4, 7, 30)])
    return found


def measured(data, **options):
    cka = MinibatchCKA(["a", "b"], ["c"], also=EVERY, **options)
    for a, b, c in data:
        cka.update([a, b], [c])
    return cka.compute()


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_gram_matrix_is_recovered_from_what_a_batch_keeps(estimator):
    stack = GramStack(["a", "b", "c"], 24, estimator=estimator)
    (xs,) = batches(1)
    stack.put_all(xs)
    for k, x in zip(grams(stack), xs, strict=True):
        expected = linear(x.numpy())
        assert_close(k, expected, FLOAT64 * np.abs(expected).max())


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, CKA)], ids=str
)
@pytest.mark.parametrize("name", EVERY)
def test_every_measure_is_the_mean_of_its_definition_over_batches(
    name, estimator, dtype, tolerance
):
    data = [*batches(2, dtype=dtype), *batches(1, n=17, dtype=dtype)]
    also = measured(data, estimator=estimator).also
    examples = np.array([24, 24, 17])

    def mean(values):
        return (np.array(values) * examples).sum() / examples.sum()

    in64 = [[x.double().numpy() for x in xs] for xs in data]
    if name in OF_PAIRS:
        expected = [[mean([DEFINED[name](xs[i], xs[2]) for xs in in64])] for i in (0, 1)]
        allowed = ROOTS[dtype] if name == "procrustes" else tolerance
        assert_close(also[name], np.array(expected), allowed)
    else:
        a = [mean([DEFINED[name](xs[i]) for xs in in64]) for i in (0, 1)]
        b = [mean([DEFINED[name](xs[2]) for xs in in64])]
        assert_close(also[f"{name}_a"], np.array(a), 30 * tolerance)  # values up to n
        assert_close(also[f"{name}_b"], np.array(b), 30 * tolerance)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_spectra_of_a_gaussian_matrix_are_of_the_centred_one(name):
    (xs,) = batches(1)
    also = measured([xs], gram="rbf").also
    for place, side, x in ((0, "a", xs[0]), (1, "a", xs[1]), (0, "b", xs[2])):
        expected = DEFINED[name](x.numpy(), rbf)
        assert also[f"{name}_{side}"][place] == pytest.approx(expected, rel=1e-6)


def test_a_layer_that_is_dead_in_one_batch_is_measured_by_the_others():
    data = batches(3)
    expected = measured(data[:2]).also
    data[2][0] = torch.zeros_like(data[2][0])
    also = measured(data).also
    for name in OF_PAIRS:
        assert_close(also[name][0], expected[name][0], FLOAT64)
        assert np.isfinite(also[name]).all()
    for name in OF_LAYERS:
        assert also[f"{name}_a"][0] == pytest.approx(expected[f"{name}_a"][0], abs=FLOAT64)


def test_a_turned_and_scaled_copy_is_the_same_by_every_measure_of_pairs():
    x = torch.randn(32, 6).double()
    turn = torch.linalg.qr(torch.randn(6, 6).double()).Q
    cka = MinibatchCKA(["x"], ["y"], also=EVERY).update([x], [3 * x @ turn - 7])
    also = cka.compute().also
    for name in OF_PAIRS:
        assert also[name][0, 0] == pytest.approx(1, abs=ROOTS[torch.float64]), name
    assert also["effective_rank_a"] == pytest.approx(also["effective_rank_b"], rel=FLOAT64)


def test_unrelated_layers_share_neighbours_by_chance():
    n, shares = 40, []
    for _ in range(200):
        cka = MinibatchCKA(["x"], ["y"], also=["mutual_knn"])
        cka.update([torch.randn(n, 5)], [torch.randn(n, 5)])
        shares.append(cka.compute().also["mutual_knn"][0, 0])
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - NEIGHBOURS / (n - 1)) < 4 * error


def test_ranks_are_those_of_an_equal_spectrum():
    # d directions of equal variance: both ranks are d.
    x = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    also = MinibatchCKA(["x"], also=EVERY[-2:]).update([x]).compute().also
    assert also["participation_ratio_a"] == pytest.approx(5, abs=FLOAT64)
    assert also["effective_rank_a"] == pytest.approx(5, abs=FLOAT64)
    one = torch.arange(12.0)[:, None].double()
    also = MinibatchCKA(["x"], also=EVERY[-2:]).update([one]).compute().also
    assert also["participation_ratio_a"] == pytest.approx(1, abs=FLOAT64)
    assert also["effective_rank_a"] == pytest.approx(1, abs=1e-6)  # x log x of what rounds to 0


def test_batches_without_so_many_neighbours_count_for_the_others_alone():
    large, small = batches(1)[0], batches(1, n=NEIGHBOURS)[0]
    both, alone = measured([large, small]).also, measured([large]).also
    assert np.array_equal(both["mutual_knn"], alone["mutual_knn"])
    assert not np.array_equal(both["rsa_cosine"], alone["rsa_cosine"])
    assert np.isnan(measured([small]).also["cknna"]).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_a_layer_without_a_value_has_none_and_leaves_the_others_alone(value):
    data = batches(2)
    healthy = measured(data).also
    data[0][0] = torch.full_like(data[0][0], value)
    if value == 1:
        data[1][0] = torch.full_like(data[1][0], value)
    also = measured(data).also
    for name in OF_PAIRS:
        assert np.isnan(also[name][0]).all(), name
        assert_close(also[name][1], healthy[name][1], FLOAT64)
    for name in OF_LAYERS:
        assert np.isnan(also[f"{name}_a"][0])
        assert also[f"{name}_a"][1] == pytest.approx(healthy[f"{name}_a"][1], abs=FLOAT64)
        assert np.isfinite(also[f"{name}_b"]).all()


def test_sums_are_merged_saved_and_loaded(tmp_path):
    data = batches(5)
    whole = measured(data)
    parts = [MinibatchCKA(["a", "b"], ["c"], also=EVERY) for _ in range(2)]
    for i, (a, b, c) in enumerate(data):
        parts[i % 2].update([a, b], [c])
    merged = MinibatchCKA(["a", "b"], ["c"], also=EVERY)
    merged.load_state_dict(parts[0].merge(parts[1]).state_dict())
    result = merged.compute()
    loaded = fastcka.CKAResult.load(result.save(tmp_path / "result"))
    for name, value in whole.also.items():
        assert_close(result.also[name], value, FLOAT64)
        assert np.array_equal(loaded.also[name], result.also[name])
    assert loaded.also.keys() == result.also.keys()


def test_compare_measures_them_in_the_same_pass():
    from networks import images, net

    data = images(60).split(20)
    usual = fastcka.compare(net(), net(seed=1), data, layers_a="leaves")
    result = fastcka.compare(net(), net(seed=1), data, layers_a="leaves", also=EVERY)
    assert np.array_equal(usual.cka, result.cka)
    assert usual.also == {}
    table = result.to_pandas()
    assert np.array_equal(table.cknna, result.also["cknna"].ravel())
    layers = result.to_xarray().effective_rank_b
    assert layers.dims == ("layer_b",)
    several = fastcka.compare_many({"a": net(), "b": net(seed=1)}, data, also=["rsa_cosine"])
    assert several["a", "b"].also["rsa_cosine"].shape == several["a", "b"].cka.shape
