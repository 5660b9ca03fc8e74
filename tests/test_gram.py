import contextlib

import pytest
import torch
from data import DTYPES, as_float64
from tolerance import OPERAND, UNIT, assert_close, gram_entry

from fastcka.kernels import dispatch, gram
from fastcka.kernels.precision import full_precision_products
from fastcka.maths import gram as definition

# n: the smallest, either side of a panel of 16 rows, several panels. p: one feature, either side of
# a vector, of the block of 256 and of the chunk of 16,384.
SHAPES = [
    (4, 1),
    (5, 17),
    (7, 257),
    (16, 256),
    (17, 255),
    (33, 1000),
    (64, 16_385),
    (100, 513),
    (130, 700),
]


def check_entries(k, x, factor=1.0):
    """Every entry of the lower triangle, against its own bound."""
    values = torch.from_numpy(definition.subtract_mean_row(as_float64(x)))
    expected, terms = values @ values.T, values.abs() @ values.abs().T
    error = (k.cpu().tril() - expected.tril()).abs()
    # On a GPU activations of 16 bits are multiplied as such.
    operand = x.dtype if x.is_cuda else None
    bound = factor * gram_entry(x.dtype, values.shape[1], operand, x.is_cuda) * terms + 1e-300
    assert (error <= bound).all(), f"{(error / bound).max():.3g} times the bound"


def takes_a_sample(device):
    """Whether the version subtracts the mean of a few rows, where others take that of all."""
    name = dispatch.name_of("gram", device, torch.float32, 4)
    return name == "triton" or (name == "native" and device.type == "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "p"), SHAPES)
def test_gram_is_the_product_of_centred_rows(version, dtype, n, p):
    x = (torch.randn(n, p, dtype=torch.float64) + 1).to(dtype).to(version)
    check_entries(gram(x).k, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_are_the_norms_that_centring_takes_away(version, dtype):
    x = (torch.randn(37, 500, dtype=torch.float64) + 2).to(dtype).to(version)
    values = torch.from_numpy(as_float64(x))
    spread = (values - values.mean(0)).square().sum()
    whole = values.square().sum()
    if takes_a_sample(version) and dtype != torch.float64:
        whole = 37 * values[[0, 9, 18, 27]].square().sum(1).mean()  # from the rows that it samples
    expected = [(whole - spread) / 37, whole, spread]
    # Operands of 16 bits are rounded; the errors of 18,500 squares mostly cancel.
    rounded = UNIT.get(dtype, 0.0) / 10 if x.is_cuda else 0.0
    for actual, norm in zip(gram(x).stats, expected, strict=True):
        assert_close(actual / norm, 1.0, 1e-6 + rounded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_rows_give_a_gram_matrix_of_zeros(version, dtype):
    row = torch.randn(700, dtype=torch.float64).to(dtype)
    x = row.expand(13, -1).clone().to(version)
    assert torch.equal(gram(x).k.tril(), torch.zeros(13, 13, dtype=torch.float64, device=version))


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e15, 1e30])
def test_values_whose_squares_leave_float32_keep_their_digits(version, scale):
    x = (torch.randn(20, 300) * scale).to(version)
    k = gram(x).k / scale / scale
    check_entries(k, x.double() / scale, factor=2.0**29)  # the float32 bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("operand", ["fp16", "bf16"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rounding_to_the_operand_costs_what_its_digits_say(version, dtype, operand, scale):
    x = ((torch.randn(32, 2000) + 3) * scale).to(dtype).to(version)
    k = gram(x, operand={"fp16": torch.float16, "bf16": torch.bfloat16}[operand]).k.cpu().tril()
    values = torch.from_numpy(definition.subtract_mean_row(as_float64(x)))
    exact = (values @ values.T).tril()
    rounding = {"fp16": 2.0**-11, "bf16": 2.0**-8}[operand]
    error = (k - exact).abs() / (values.abs() @ values.abs().T)
    assert error.max() <= rounding
    # and it does round: unrounded products would be a hundred times closer
    assert error.max() >= rounding / 100


def test_halves_are_rounded_as_torch_rounds_them(version):
    if takes_a_sample(version):
        pytest.skip("it rounds what is left of another common row")
    x = torch.randn(8, 64, device=version)
    x = x - x.mean(0)
    for operand in (torch.float16, torch.bfloat16):
        rounded = x.to(operand).double()
        k = gram(x, operand=operand).k.tril()
        # The mean of centred values is not quite zero, so a few values round to their neighbour.
        assert_close(k, (rounded @ rounded.T).tril(), OPERAND["fp16"] * 64)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_value_that_is_not_finite_shows(version, bad):
    x = torch.randn(9, 300, device=version)
    x[3, 200] = bad
    assert not torch.isfinite(gram(x).k.tril().sum())


def test_one_thread_and_two_agree_and_each_repeats_its_bits():
    x = torch.randn(50, 3001)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 1, 2):
            torch.set_num_threads(threads)
            results.append(gram(x, backend="native").k.tril())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    check_entries(results[0], x)
    check_entries(results[1], x)


def test_full_precision_is_set_within_its_block_and_restored_after():
    settings = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        allowed = [setting.fp32_precision for setting in settings]
        within = []
        with contextlib.suppress(KeyError), full_precision_products(torch.device("cpu")):
            within += [setting.fp32_precision for setting in settings]
            raise KeyError
        assert within == ["ieee", "ieee"]
        assert [setting.fp32_precision for setting in settings] == allowed != ["ieee", "ieee"]
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("setting", ["medium", "autocast"])
def test_products_stay_float32_whatever_the_user_allows_elsewhere(version, setting):
    x = torch.randn(64, 4096, device=version)
    plain = gram(x).k.tril()
    if setting == "autocast":
        with torch.autocast(version.type, dtype=torch.bfloat16):
            allowed = gram(x).k.tril()
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            allowed = gram(x).k.tril()
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision(before)
    check_entries(plain, x)
    check_entries(allowed, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "device"),
    [("native", "cpu"), pytest.param("torch", "cuda", marks=pytest.mark.gpu)],
)
def test_more_than_two_to_the_31_values_are_addressed_right(backend, device):
    p = 2**29 + 1
    x = torch.empty(4, p, dtype=torch.float16, device=device)
    for row in x:
        row[: 2**29] = torch.randint(-2, 3, (2**20,), dtype=torch.float16).repeat(2**9)
        row[-1] = 100  # read in place of any other, it shows
    k, expected = gram(x, backend=backend).k.cpu(), torch.zeros(4, 4, dtype=torch.float64)
    for chunk in x.split(1 << 24, dim=1):
        values = chunk.double()
        values -= values.mean(0)
        expected += (values @ values.T).cpu()
    assert_close((k / expected).tril(), torch.ones(4, 4).tril(), 1e-6)
