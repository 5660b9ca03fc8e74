"""Any shape, type, layout, offset and scale: what the chosen cases may have missed."""

import math

import pytest
import torch
from data import DTYPES, as_float64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerance import REORDERED, assert_close, gram_entry

from fastcka.kernels import finish, gram, gram_finish
from fastcka.kernels.layout import as_rows
from fastcka.maths import gram as definition

# The same examples in every run; half a minute on two cores.
CHOSEN = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# One row after the other, at a distance, and with features in another order of memory.
LAYOUTS = ["dense", "padded", "shifted", "every other row", "channels_last", "expanded"]
ROUNDING = {None: 0.0, "fp16": 2.0**-10, "bf16": 2.0**-7}


@st.composite
def activations(draw):
    dtype = draw(st.sampled_from(DTYPES))
    n = draw(st.integers(4, 50))
    # Near multiples of a vector, of what is added up in a row, and of a block.
    p = draw(
        st.one_of(
            st.integers(1, 80), st.integers(1, 4).map(lambda i: 256 * i + 1), st.integers(200, 1300)
        )
    )
    layout = draw(st.sampled_from(LAYOUTS))
    # 16-bit values must keep some digits of their own.
    offset = draw(st.sampled_from([0.0, 1.0, -8.0]))
    # No further than squares in float32 and float64 go, and halves themselves.
    limit = {torch.float16: 8, torch.bfloat16: 60, torch.float32: 60}.get(dtype, 400)
    scale = 2.0 ** draw(st.integers(-limit, limit))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(n, p, generator=generator, dtype=torch.float64) + offset
    return placed((values * scale).to(dtype), layout)


def placed(x, layout):
    """The same values elsewhere in memory, among NaN."""
    n, p = x.shape
    around = torch.full((2 * n + 1, p + 5), torch.nan, dtype=x.dtype)
    if layout == "padded":
        place = around[1 : n + 1, :p]
    elif layout == "shifted":
        place = around.view(-1)[3 : 3 + n * p].view(n, p)
    elif layout == "every other row":
        place = around[1::2, 2 : p + 2]
    elif layout == "channels_last":
        channels = next(c for c in (7, 5, 3, 2, 1) if p % c == 0)
        x = x.view(n, channels, p // channels, 1)
        return x.to(memory_format=torch.channels_last)
    elif layout == "expanded":
        return x[:1].expand(n, p)
    else:
        return x
    place.copy_(x)
    return place


@CHOSEN
@given(
    x=activations(), operand=st.sampled_from(sorted(ROUNDING, key=str)), threads=st.integers(1, 3)
)
def test_any_activations_are_multiplied_within_the_bound(x, operand, threads):
    if x.dtype == torch.float64 and operand:
        operand = None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch = gram(x, operand=operand, backend="native")
        alone = finish(batch)
        together = gram_finish([x], operand=operand, backend="native")
    finally:
        torch.set_num_threads(before)
    # The values in the order of memory: a Gram matrix does not see a permutation of features.
    values = torch.from_numpy(definition.subtract_mean_row(as_float64(as_rows(x))))
    # By the largest, so that float64 itself can hold the products.
    largest = values.abs().max().item() or 1.0
    values = values / largest
    error = (batch.k / largest / largest - values @ values.T).abs().tril()
    terms = values.abs() @ values.abs().T
    bound = (gram_entry(x.dtype, values.shape[1]) + ROUNDING[operand]) * terms
    # A rounded mean row is off by roundings of the values as they came.
    raw = as_rows(x).double().abs().max().item() / largest
    unit = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    bound = bound + 4 * unit * raw * (terms.diagonal().sqrt() * math.sqrt(values.shape[1])).max()
    assert (error <= bound + 1e-300).all(), f"{(error / bound).max():.3g} times the bound"
    for mine, its in zip(together, alone, strict=True):
        assert torch.equal(mine[0].isnan(), its.isnan())
        size = its.abs().nan_to_num().max() or 1.0
        assert_close((mine[0] / size).nan_to_num(), (its / size).nan_to_num(), REORDERED)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_are_what_their_names_say(layout):
    x = torch.arange(24.0).view(4, 6)
    y = placed(x, layout)
    assert y.flatten(1).tolist() == (x[:1].expand(4, 6) if layout == "expanded" else x).tolist()
    rows = as_rows(y)
    assert rows.shape == (4, 6)
    assert rows.data_ptr() == y.data_ptr()  # read in place
