import numpy as np
import pytest
import torch
from data import DTYPES, as_float64, defined_cka, layers, minibatch_cka, names, related
from tolerance import CKA, FLOAT64, HSIC, INVARIANCE, OPERAND, assert_close

import fastcka
from fastcka import CKAWarning, MinibatchCKA
from fastcka.kernels import native
from fastcka.maths import cka as definition


def reference_data():
    np.random.seed(1337)
    x = np.random.randn(100, 10)
    return torch.from_numpy(x), torch.from_numpy(np.random.randn(100, 10) + x)


def batches_of(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


REFERENCE = [
    (25, "pairs", 0.513268),
    (20, "pairs", 0.533718),
    (32, "pairs", 0.502975),
    (16, "pairs", 0.492619),
    (25, "equal", 0.513268),
    (20, "equal", 0.533718),
    (32, "equal", 0.459637),
    (16, "equal", 0.469617),
]


@pytest.mark.parametrize(("size", "weighting", "expected"), REFERENCE)
def test_batches_give_the_reference_numbers(version, size, weighting, expected):
    x, y = (part.to(version) for part in reference_data())
    cka = minibatch_cka(batches_of(x, y, size), weighting=weighting)
    assert_close(cka, expected, 0.5e-6)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(
    "gram",
    [{}, {"gram": "rbf"}, {"gram": "rbf", "bandwidth": 0.4}, {"gram": "rbf", "bandwidth": 1e3}],
)
@pytest.mark.parametrize("weighting", ["pairs", "equal"])
def test_minibatch_cka_is_its_definition(version, estimator, gram, weighting):
    x, y = (part.to(version) for part in related(87, 13, 40))
    batches = batches_of(x, y, 16)
    expected = definition.minibatch(
        [as_float64(a) for a, _ in batches],
        [as_float64(b) for _, b in batches],
        weighting=weighting,
        estimator=estimator,
        **gram,
    )
    cka = minibatch_cka(batches, weighting=weighting, estimator=estimator, **gram)
    # A wide Gaussian is 1 but for 1/bandwidth², and loses as many digits.
    assert_close(cka, expected, FLOAT64 * max(1, gram.get("bandwidth", 1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [4, 7, 64])
def test_cka_of_a_batch_is_the_definition_on_the_values_as_received(version, dtype, n):
    x, y = related(n, 2000, 300, dtype=dtype, device=version)
    assert_close(minibatch_cka([(x + 3, y)]), defined_cka(x + 3, y), CKA)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wide_16_bit_activations_keep_their_cka(version, dtype):
    x = torch.randn(64, 4096) * 8
    x, y = x.to(dtype).to(version), x.relu().to(dtype).to(version)
    assert_close(minibatch_cka([(x, y)], operand="fp32"), defined_cka(x, y), CKA)


@pytest.mark.parametrize("operand", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_operands_cost_no_more_than_their_digits(version, operand, offset):
    x = torch.randn(64, 3000, device=version)
    y = (x + torch.randn(64, 3000, device=version)).relu() + offset
    assert_close(
        minibatch_cka([(x + offset, y)], operand=operand),
        defined_cka(x + offset, y),
        OPERAND[operand],
    )


def test_hsic_is_that_of_the_definition(version):
    from fastcka.maths import gram, hsic

    x, y = related(30, 500, 40, dtype=torch.float32, device=version)
    cka = MinibatchCKA(["x"], ["y"])
    cka.update([x], [y])
    result = cka.compute()
    k, l_ = (gram.linear(as_float64(side)) for side in (x, y))
    for actual, expected in (
        (result.hsic_ab[0, 0], hsic.unbiased_by_centring(k, l_)),
        (result.hsic_aa[0], hsic.unbiased_by_centring(k, k)),
        (result.hsic_bb[0], hsic.unbiased_by_centring(l_, l_)),
    ):
        assert_close(actual / expected, 1.0, HSIC)


@pytest.mark.parametrize("offset", [0.0, 3.0, 10.0, 100.0, 1e3, 1e4])
def test_a_common_offset_does_not_change_cka(version, offset):
    z = torch.randn(64, 256, device=version)
    expected = defined_cka(z.relu(), z)
    assert_close(minibatch_cka([(z.relu() + offset, z + offset)]), expected, INVARIANCE)


def test_a_model_with_itself_is_symmetric_with_a_diagonal_of_ones(version):
    cka = MinibatchCKA(names(5))
    for seed in range(3):
        cka.update(layers(20, 5, seed, version))
    result = cka.compute()
    assert (result.cka.diagonal() == 1).all()
    assert (result.cka == result.cka.T).all()
    assert (result.stderr.diagonal() == 0).all()


def test_equal_layers_of_two_models_have_a_cka_of_exactly_one():
    cka = MinibatchCKA(names(6), names(6), backend="native")
    for seed in range(3):
        xs = layers(21, 6, seed)
        cka.update(xs, [x.clone() for x in xs])
    assert (cka.compute().cka.diagonal() == 1).all()


def test_many_models_in_one_run_equal_runs_of_two(version):
    models = {"vit": names(3, "v"), "resnet": names(4, "r"), "mixer": names(2, "m")}
    many = MinibatchCKA(models)
    pairs = {pair: MinibatchCKA(models[pair[0]], models[pair[1]]) for pair in
             [("vit", "resnet"), ("vit", "mixer"), ("resnet", "mixer")]}  # fmt: skip
    alone = MinibatchCKA(models["resnet"])
    for seed in range(4):
        xs = layers(25, 9, seed, version)
        given = {"vit": xs[:3], "resnet": xs[3:7], "mixer": xs[7:]}
        many.update(given)
        alone.update(given["resnet"])
        for (a, b), cka in pairs.items():
            cka.update(given[a], given[b])
    results = many.compute()
    assert len(results) == 6
    for pair, cka in pairs.items():
        assert_close(results[pair].cka, cka.compute().cka, FLOAT64)
        assert_close(results[pair].stderr, cka.compute().stderr, FLOAT64)
        assert results[pair].layers_a == tuple(models[pair[0]])
    assert_close(results["resnet", "resnet"].cka, alone.compute().cka, FLOAT64)


def test_one_run_over_all_layers_holds_the_rectangle_of_two_models(version):
    joint, rectangle = MinibatchCKA(names(7)), MinibatchCKA(names(3), names(4, "r"))
    for seed in range(3):
        xs = layers(18, 7, seed, version)
        joint.update(xs)
        rectangle.update(xs[:3], xs[3:])
    assert_close(joint.compute().cka[:3, 3:], rectangle.compute().cka, FLOAT64)


BAD_LAYERS = {
    "constant": lambda x: torch.full_like(x, 3.7),
    "equal rows": lambda x: x[:1].expand_as(x).clone(),
    "dead": torch.zeros_like,
    "rounding alone": lambda x: (1e3 * (1 + 1e-8 * x.double())).to(x.dtype),
    "one example differs": lambda x: torch.cat([x[:1] + 5, x[:1].expand(len(x) - 1, -1)]),
    "inf": lambda x: x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(float("inf"))),
    "nan": lambda x: x.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan"))),
}


@pytest.mark.parametrize("kind", BAD_LAYERS)
@pytest.mark.parametrize("gram", ["linear", "rbf"])
def test_a_layer_without_a_value_is_nan_and_named_and_leaves_the_others_alone(version, kind, gram):
    healthy, broken, without = (MinibatchCKA(names(n), gram=gram) for n in (4, 4, 3))
    for seed in range(3):
        xs = [x.cpu() for x in layers(23, 4, seed)]
        bad = BAD_LAYERS[kind](xs[2])
        healthy.update([x.to(version) for x in xs])
        broken.update([x.to(version) for x in (xs[0], xs[1], bad, xs[3])])
        without.update([x.to(version) for x in (xs[0], xs[1], xs[3])])
    with pytest.warns(CKAWarning, match="layer 'l2'") as caught:
        result = broken.compute()
    assert len(caught) == 1
    assert np.isnan(result.cka[2]).all()
    assert np.isnan(result.cka[:, 2]).all()
    assert np.isnan(result.stderr[2]).all()
    assert ("is constant" if kind not in ("inf", "nan") else "first in batch 0") in str(
        result.warnings
    )
    others = np.ix_([0, 1, 3], [0, 1, 3])
    expected = healthy.compute()
    assert (result.cka[others] == expected.cka[others]).all()
    assert (result.stderr[others] == expected.stderr[others]).all()
    tolerance = FLOAT64 if version.type == "cpu" else 1e-6
    assert_close(result.cka[others], without.compute().cka, tolerance)


def test_an_offset_of_1e4_deviations_is_not_taken_for_a_constant(version):
    for dtype, offset in ((torch.float32, 1e4), (torch.float16, 100.0), (torch.bfloat16, 10.0)):
        for n, p in ((4, 1), (64, 256), (16, 50_000)):
            x = (torch.randn(n, p) + offset).to(dtype).to(version)
            assert np.isfinite(minibatch_cka([(x, x)]))


def test_constant_features_however_large_do_not_hide_the_others(version):
    x = torch.randn(32, 400, device=version)
    with_giants = x.clone()
    with_giants[:, [7, 90]] = 1e4
    without = x.clone()
    without[:, [7, 90]] = 0
    assert_close(minibatch_cka([(with_giants, x)]), minibatch_cka([(without, x)]), CKA)


def test_the_batch_with_the_first_bad_value_is_named():
    cka = MinibatchCKA(names(2))
    for seed in range(5):
        xs = layers(10, 2, seed)
        if seed in (3, 4):
            xs[1][2, 2] = float("nan")
        cka.update(xs)
    with pytest.warns(CKAWarning, match="layer 'l1' holds inf or NaN, first in batch 3; its CKA"):
        cka.compute()


def outlier(size, dtype=torch.float32):
    x = torch.randn(40, 1000)
    x[4] *= size
    return x.to(dtype)


@pytest.mark.parametrize(
    ("size", "dtype", "told"),
    [(3e2, torch.float32, False), (3e3, torch.float32, True), (3e4, torch.float64, False)],
)
def test_a_layer_dominated_by_one_example_is_told(size, dtype, told):
    cka = MinibatchCKA(["x"])
    cka.update([outlier(size, dtype)])
    if told:
        with pytest.warns(CKAWarning, match="layer 'x' is dominated by few examples"):
            cka.compute()
    else:
        assert cka.compute().warnings == ()


@pytest.mark.parametrize("spread", [1e-7, 1e-5])
def test_a_layer_is_constant_where_it_varies_by_its_rounding_alone(spread):
    z = 1 + spread * torch.randn(30, 500, dtype=torch.float64)
    cka = MinibatchCKA(["x"])
    cka.update([z.float()])
    if spread < 4 * 2**-23:
        with pytest.warns(CKAWarning, match="is constant"):
            assert np.isnan(cka.compute().cka[0, 0])
    else:
        assert cka.compute().cka[0, 0] == 1


@pytest.mark.parametrize("order", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.parametrize("merged", [False, True])
def test_a_layer_of_mixed_types_is_judged_by_the_coarser(order, merged):
    parts = [MinibatchCKA(["x"]) for _ in range(2)]
    for i, dtype in enumerate(order):
        z = (1 + 1e-8 * torch.randn(30, 50, dtype=torch.float64)).to(dtype)
        parts[i if merged else 0].update([z])
    cka = parts[0].merge(parts[1]) if merged else parts[0]
    with pytest.warns(CKAWarning, match="is constant"):
        cka.compute()


def test_unrelated_examples_that_are_equal_do_not_disturb_rbf(version):
    x, y = related(50, 30, 20)
    x[10:], y[12:] = x[10], y[12]
    for dtype in DTYPES:
        pair = [side.to(dtype).to(version) for side in (x, y)]
        expected = defined_cka(*pair, gram="rbf")
        assert_close(minibatch_cka([pair], gram="rbf"), expected, CKA)


def untrained_residual_network():
    def block(channels):
        return torch.nn.Sequential(
            torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(channels),
        )

    return torch.nn.Conv2d(3, 32, 7, stride=2, padding=3), [block(32) for _ in range(6)]


@pytest.mark.parametrize("operand", ["fp32", "fp16", "bf16"])
def test_operands_keep_their_digits_on_an_untrained_residual_network_and_noise(version, operand):
    stem, blocks = untrained_residual_network()
    cka = MinibatchCKA(names(13), operand=operand)
    batches = []
    with torch.no_grad():
        for module in [stem, *blocks]:
            module.eval()
        for _ in range(2):
            x = stem(torch.rand(32, 3, 32, 32))
            xs = [x]
            for block in blocks:
                branch = block(x)
                x = (x + branch).relu()
                xs += [branch, x]
            batches.append(xs)
            cka.update([layer.to(version) for layer in xs])
    result = cka.compute().cka
    flat = [[as_float64(layer) for layer in batch] for batch in batches]
    for i in range(13):
        for j in range(i):
            expected = definition.minibatch([b[i] for b in flat], [b[j] for b in flat])
            assert_close(result[i, j], expected, OPERAND[operand])


@pytest.mark.parametrize(
    "options", [{}, {"estimator": "biased"}, {"weighting": "equal"}, {"operand": "bf16"}]
)
@pytest.mark.parametrize("many", [False, True])
def test_bad_layers_of_two_models_leave_all_other_cells_bit_equal(options, many):
    healthy, broken = (
        MinibatchCKA({"a": names(3), "b": names(4, "r")}, **options)
        if many
        else MinibatchCKA(names(3), names(4, "r"), **options)
        for _ in range(2)
    )
    for seed in range(3):
        xs = layers(23, 7, seed)
        bad = [x.clone() for x in xs]
        bad[1] = torch.full_like(xs[1], 2.5)
        bad[5][3, 1] = float("inf")
        for cka, given in ((healthy, xs), (broken, bad)):
            if many:
                cka.update({"a": given[:3], "b": given[3:]})
            else:
                cka.update(given[:3], given[3:])
    expected = healthy.compute()
    with pytest.warns(CKAWarning, match="^layer ") as caught:
        result = broken.compute()
    told = [str(warning.message) for warning in caught]
    assert len(told) == 2
    assert "layer 'l1' of model 'a' is constant" in told[0]
    assert "layer 'r2' of model 'b' holds inf or NaN" in told[1]
    if many:
        result, expected = result["a", "b"], expected["a", "b"]
    others = np.ix_([0, 2], [0, 1, 3])
    assert (result.cka[others] == expected.cka[others]).all()
    assert (result.stderr[others] == expected.stderr[others]).all()
    assert np.isnan(result.cka[1]).all()
    assert np.isnan(result.cka[:, 2]).all()


@pytest.mark.parametrize("tail", [1, 2, 3])
def test_tails_of_fewer_than_4_are_left_out_and_counted(tail):
    x, y = related(32 + tail, 6, 5)
    cka = MinibatchCKA(["x"], ["y"])
    for pair in batches_of(x, y, 32):
        cka.update([pair[0]], [pair[1]])
    with pytest.warns(CKAWarning, match=rf"1 batch of fewer than 4 .*\({tail} examples\)"):
        result = cka.compute()
    assert (result.n_batches, result.n_examples) == (1, 32)
    assert result.meta["skipped_examples"] == tail
    assert result.cka[0, 0] == minibatch_cka([(x[:32], y[:32])])


def test_a_tail_of_4_counts():
    x, y = related(36, 6, 5)
    whole, first = (minibatch_cka(batches_of(x[:n], y[:n], 32)) for n in (36, 32))
    assert whole != first


def test_two_runs_give_the_same_bits(version):
    results = []
    for _ in range(2):
        cka = MinibatchCKA(names(4))
        for seed in range(3):
            cka.update(layers(30, 4, seed, version))
        results.append(cka.compute())
    assert (results[0].cka == results[1].cka).all()
    assert (results[0].stderr == results[1].stderr).all()


def test_backends_agree():
    results = {}
    for backend in ("native", "torch"):
        cka = MinibatchCKA(names(4), backend=backend)
        for seed in range(3):
            cka.update(layers(30, 4, seed))
        results[backend] = cka.compute()
    assert_close(results["native"].cka, results["torch"].cka, 1e-6)


def test_mappings_are_put_in_the_order_of_the_layers():
    xs = layers(10, 3, 0)
    listed, mapped = MinibatchCKA(names(3)), MinibatchCKA(names(3))
    listed.update(xs)
    mapped.update({"l2": xs[2], "l0": xs[0], "l1": xs[1]})
    assert (listed.compute().cka == mapped.compute().cka).all()


def test_layers_of_different_types_and_layouts_may_meet():
    x = torch.randn(16, 8, 6, 6)
    cka = MinibatchCKA(names(4))
    cka.update([x, x.double(), x.to(memory_format=torch.channels_last), x.half()])
    result = cka.compute().cka
    assert_close(result, np.ones((4, 4)), 1e-4)


def test_inputs_are_not_changed(version):
    xs = layers(12, 3, 0, version)
    copies = [x.clone() for x in xs]
    cka = MinibatchCKA(names(3))
    cka.update(xs)
    cka.compute()
    assert all(torch.equal(x, c) for x, c in zip(xs, copies, strict=True))


def test_activations_that_require_gradients_are_read_as_values():
    x = torch.randn(8, 5, requires_grad=True)
    assert minibatch_cka([(x, x * 2)]) == pytest.approx(1.0)


def test_parameters_and_inference_tensors_are_read():
    with torch.inference_mode():
        x = torch.randn(8, 5)
        cka = MinibatchCKA(["x"], ["y"])
        cka.update([x], [torch.nn.Parameter(x * 2)])
    cka.update([torch.randn(8, 5)], [torch.randn(8, 4)])
    assert cka.compute().n_batches == 2


def test_the_default_device_of_the_user_does_not_matter():
    with torch.device("meta"):
        cka = MinibatchCKA(["x"])
        cka.update([torch.arange(12.0, device="cpu").square().reshape(6, 2)])
        assert cka.compute().cka[0, 0] == 1


def test_the_options_are_recorded():
    cka = MinibatchCKA(["x"], weighting="equal", gram="rbf", bandwidth=2.0, operand="bf16")
    cka.update([torch.randn(8, 5)])
    meta = cka.compute().meta
    assert meta["weighting"] == "equal"
    assert meta["gram"] == "rbf"
    assert meta["bandwidth"] == 2.0
    assert meta["operand"] == "bf16"
    assert meta["estimator"] == "unbiased"
    assert meta["threads"] == torch.get_num_threads()
    assert (meta["device"], meta["backend"]) == ("cpu", "native")
    assert meta["isa"] == native.module.isa()
    assert len(meta["conditioning_a"]) == 1
    assert fastcka.__version__ == meta["fastcka"]
