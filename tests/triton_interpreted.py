"""Every tile and branch of the Triton kernels, by Triton's interpreter on a CPU.

It is chosen when Triton is imported, for the whole process: `test_triton.py` starts one. Programs
run one after the other, so what is wrong between them does not show here.
"""

import importlib
import itertools
from pathlib import Path

import pytest
import torch
from data import as_float64
from tolerance import CKA, REORDERED, UNIT, assert_close, gram_entry

from fastcka.kernels import (
    dispatch,
    finish,
    gpu_gram,
    gram,
    gram_finish,
    triton_finish,
    triton_launch,
)
from fastcka.kernels.triton_launch import GFX942, SM80, SM90, SM100, tiles
from fastcka.maths import gram as definition

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture(autouse=True)
def by_triton():
    with dispatch.using("triton"):
        yield


def check(k, x, operand):
    values = torch.from_numpy(definition.subtract_mean_row(as_float64(x)))
    expected, terms = values @ values.T, values.abs() @ values.abs().T
    # The pivot is the mean of a few rows: what is rounded is up to twice what is left of the mean.
    bound = gram_entry(x.dtype, x.shape[1]) + 2 * UNIT.get(operand, 0.0)
    error = (k.tril() - expected.tril()).abs() / terms
    assert error.max() <= bound, f"{error.max() / bound:.3g} times the bound"


CASES = [
    (target, n, operand, features)
    for target in (SM80, SM90)
    for n, operand in [*itertools.product((5, 65), TYPES), (130, "fp16"), (130, "bf16")]
    for features in (136, 131)  # whole pieces of 16 bytes, and not
]
CASES += [(SM90, 260, "fp16", 72), (SM100, 260, "fp16", 72), (SM80, 130, "fp32", 35)]

# Every tile but the widest, by the settings of sm_90 where it has them.
USUAL = [case for case in CASES if (case[0] is SM90 or case[1] == 130) and case[1] < 200]


@pytest.mark.parametrize(
    ("target", "n", "operand", "features"),
    [pytest.param(*case, marks=() if case in USUAL else pytest.mark.slow) for case in CASES],
)
def test_every_tile_gives_the_definition(monkeypatch, target, n, operand, features):
    monkeypatch.setattr(triton_launch, "target_of", lambda device: target)
    operand = TYPES[operand]
    other = torch.float16 if operand == torch.float32 else torch.float32
    for dtype in (operand, other) if n < 100 else (operand,):
        x = (torch.randn(n, features) + 1).to(dtype)
        check(gram(x, operand=operand).k, x, operand)


def test_the_cases_use_every_tile():
    used = set()
    for target, n, operand, features in CASES:
        dtype = TYPES[operand]
        used |= {tile for tile, _ in tiles(target, n, dtype, dtype, features % 8 == 0)}
    assert used == set(SM90.narrow) | set(SM90.wide)


def multiplied(*layers):
    """Products of rows less some common row, and which layers' values were taken as they are."""
    x = layers[0]
    batch = triton_launch.Batch(list(layers), x.dtype, aligned=True, far=False)
    k = torch.empty(len(layers), len(x), len(x), dtype=torch.float64)
    batch.multiply(k)
    return k.tril(), (batch.largest == 0).tolist()


def taken_as_they_are(x):
    _, (found,) = multiplied(x)
    return found


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
def test_values_go_as_they_are_where_that_costs_no_more_digits_than_centring(dtype):
    x = torch.randn(130, 136)
    near, far = (x + 1).to(dtype), (x * 0.02 + 1).to(dtype)
    assert taken_as_they_are(near)
    assert not taken_as_they_are(far)
    # Nothing is rounded but sums, so no operand is allowed for.
    check(gram(near).k, near, torch.float32)
    check(gram(far).k, far, dtype)


def test_each_layer_of_a_launch_is_centred_or_not_by_its_own_values():
    x = torch.randn(130, 72)
    layers = [(x + 1).half(), (x * 0.02 + 1).half()]
    together, found = multiplied(*layers)
    assert found == [True, False]
    for x, k in zip(layers, together, strict=True):
        (alone,), _ = multiplied(x)
        assert (alone - k).norm() <= 1e-6 * alone.norm()


def test_sampled_rows_decide():
    x = torch.randn(130, 512).half()
    x[1:8] = 0  # none of them is sampled
    assert taken_as_they_are(x)


def test_values_at_the_ends_of_their_type_and_few_rows_are_centred():
    x = torch.randn(130, 136)
    assert taken_as_they_are(x.half())
    assert not taken_as_they_are(x[:128].half())
    for scale in (1e-20, 1e20):
        assert not taken_as_they_are((x * scale).bfloat16())
    x[0, 5] = torch.inf  # in a row that is sampled
    assert not taken_as_they_are(x.half())


@pytest.mark.parametrize("programs", [1, 3])
def test_what_is_longer_than_a_chunk_is_added_up_in_its_slot(monkeypatch, programs):
    monkeypatch.setattr(gpu_gram, "processors", lambda device: programs)
    x = torch.randn(5, 20_000, dtype=torch.float16)
    check(gram(x, operand="fp16").k, x, torch.float16)


def test_rows_that_are_2_to_the_31_values_apart_are_found():
    stride = 2**23 + 8
    x = torch.zeros(5 * stride, dtype=torch.float16).as_strided((5, 300), (stride, 1))
    x.copy_(torch.randn(5, 300))
    check(gram(x, operand="fp16").k, x, torch.float16)


def test_rows_that_overlap_and_rows_that_are_one_are_read_right():
    values = torch.randn(130 * 8 + 136, dtype=torch.float16)
    windows = values.as_strided((130, 136), (8, 1))
    check(gram(windows).k, windows, torch.float16)
    assert gram(values[:136].expand(130, 136)).k.tril().abs().max() == 0


def test_joint_and_separate_runs_agree_and_each_repeats_its_bits():
    layers = [torch.randn(9, p, dtype=torch.float16) for p in (8, 1000, 77, 3000)]
    first, second = (gram_finish(layers, operand="fp16") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    for row, x in enumerate(layers):
        alone = gram_finish([x], operand="fp16").packed[0]
        assert (alone - first.packed[row]).norm() <= 1e-6 * alone.norm()


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_a_program_a_matrix_and_a_program_a_row_finish_alike(monkeypatch, estimator):
    layers = [torch.randn(9, p, dtype=torch.float16) + 3 for p in (8, 1000, 77)]
    whole = gram_finish(layers, estimator=estimator)
    monkeypatch.setattr(triton_finish, "WHOLE", 0)
    by_rows = gram_finish(layers, estimator=estimator)
    # The common row that was subtracted, and rows less their mean: one matrix, by two routes.
    recentred = [finish(gram(x), estimator=estimator) for x in layers]
    recentred = [torch.stack(parts) for parts in zip(*recentred, strict=True)]
    for one, *others in zip(whole, by_rows, recentred, strict=True):
        for other in others:
            scale = one.abs().amax(1, keepdim=True).clamp_min(1)
            assert_close((one - other) / scale, torch.zeros_like(one), REORDERED)


def test_layers_of_all_types_go_together():
    layers = [torch.randn(6, 40).to(t) for t in (*TYPES.values(), torch.float64, torch.float16)]
    for operand in (None, "fp16"):
        if operand:
            layers = [x for x in layers if x.dtype != torch.float64]
        together = gram_finish(layers, operand=operand).packed
        for row, x in enumerate(layers):
            alone = gram_finish([x], operand=operand).packed[0]
            assert (alone - together[row]).norm() <= 1e-6 * alone.norm()


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_an_offset_costs_no_digits(offset):
    x = torch.randn(40, 600) + offset
    packed = gram_finish([x], backend="triton").packed[0]
    expected = gram_finish([x.double()], backend="torch").packed[0]
    cosine = packed @ expected / packed.norm() / expected.norm()
    assert 1 - cosine <= CKA


def test_values_that_no_sampled_row_has_do_not_overflow():
    # Of 20 rows four are sampled, and they are next to nothing; the others are not.
    x = torch.full((20, 64), 6e-8)
    for row in set(range(20)) - {0, 5, 10, 15}:
        x[row] = torch.randn(64) * 1e4
    for operand in TYPES:
        check(gram(x, operand=operand).k, x, TYPES[operand])
        check(gram(x.to(TYPES[operand]), operand=operand).k, x.to(TYPES[operand]), TYPES[operand])


def test_every_pair_of_dtype_and_operand_has_constants():
    for target, dtype, operand in itertools.product(
        (SM80, SM90, SM100, GFX942), TYPES.values(), TYPES.values()
    ):
        settings = target.narrow if dtype == operand != torch.float32 else target.wide
        for tile in settings:
            constants, setting = triton_launch.products_constants(target, tile, dtype, operand)
            assert gpu_gram.PADDING % setting.step == 0
            assert constants["CHUNK"] % setting.step == 0


@pytest.mark.slow
def test_settings_take_turns_and_are_checked(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    settings, cases, rows, runner = map(
        importlib.import_module, ("gpu_settings", "cases", "rows", "runner")
    )
    some = [case for case in settings.candidates() if case[0] == 64][:2]
    monkeypatch.setattr(settings, "candidates", lambda: some)
    found = rows.Rows(None, {})
    scale = cases.SMOKE._replace(at_least=2, seconds=0)
    settings.measure(runner.Runner(torch.device("cpu"), scale, found), "some", 64, 256, 2, 30.0)
    assert [row["variant"] for row in found.all] == [
        "square 64 64 128 4 4 2 False",
        "square 64 64 128 4 3 3 False",
    ]
    assert all(row["median_us"] > 0 and row["error"] < 2e-4 for row in found.all)
