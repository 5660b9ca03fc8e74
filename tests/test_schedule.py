import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerance import OPERAND

from fastcka.kernels.schedule import CHUNK, PAIR, SLIM, WIDE, covering, deal

COVERINGS = [(False, SLIM), (False, PAIR), (True, PAIR), (True, WIDE)]
works = st.lists(st.integers(1, 3000), min_size=1, max_size=40)


@given(steps=works, programs=st.integers(1, 300))
def test_every_step_of_every_work_is_dealt_once_and_evenly(steps, programs):
    segments, begins = deal(steps, programs)
    seen = [[] for _ in steps]
    for work, start, stop in segments:
        assert start < stop
        seen[work].append((start, stop))
    for parts, count in zip(seen, steps, strict=True):
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
        assert parts[-1][1] == count
    loads = [
        sum(stop - start for _, start, stop in segments[first:last])
        for first, last in itertools.pairwise(begins)
    ]
    assert sum(loads) == sum(steps)
    assert max(loads) - min(loads) <= 1
    assert len(segments) < programs + len(steps)


@given(steps=works, programs=st.integers(1, 300))
def test_the_same_shapes_are_dealt_alike(steps, programs):
    assert deal(steps, programs) == deal(list(steps), programs)


@pytest.mark.parametrize("n", [4, 63, 64, 65, 128, 129, 200, 256, 257, 300, 512, 700, 1024, 2048])
@pytest.mark.parametrize(("triangles", "pair"), COVERINGS)
def test_tiles_cover_the_lower_triangle_and_no_entry_twice(n, triangles, pair):
    count = torch.zeros(n + 512, n + 512, dtype=torch.int32)
    for tile, places in covering(n, triangles, pair):
        for row_a, row_b in places:
            a, b = (slice(row, row + tile.rows) for row in (row_a, row_b))
            if tile.kind != "pair":
                count[a, a] += 1
            if tile.kind == "triangle":
                count[b, b] += 1
                count[b, a] += 1
            if tile.kind == "pair":
                count[a, row_b : row_b + tile.columns] += 1
    lower = torch.ones(n, n, dtype=torch.bool).tril()
    assert (count[:n, :n][lower] == 1).all()


def test_the_triangle_of_1024_costs_little_more_than_half_the_square():
    share = {}
    for triangles, pair in COVERINGS:
        tiles = covering(1024, triangles, pair)
        share[triangles] = sum(tile.products * len(places) for tile, places in tiles) / 1024**2
    assert share == {False: 0.5625, True: 0.5625}


def cut(values, bits):
    """Towards zero, to so many bits behind the first."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.trunc(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)


def test_what_tensor_cores_cut_off_within_a_chunk_is_within_the_tolerance():
    """Sums of one sign, the worst there are: 16 products at once, cut to float32's 24 bits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, CHUNK, dtype=torch.float64, generator=generator).half().double()
    exact = torch.zeros(2000, dtype=torch.float64)
    total = torch.zeros(2000, dtype=torch.float64)
    for products in x.square().split(16, dim=1):
        exact += products.sum(1)
        total = cut(total + products.sum(1), 24)
    error = (exact - total) / exact
    assert (error >= 0).all()
    # It is nearly the same for all sums, so CKA, a ratio, forgives it and HSIC does not.
    assert error.max() <= 2e-5
    assert error.std() <= error.mean() / 10
    # Unsplit sums of a million features would be off by more than HSIC may be.
    assert error.mean() * 1_000_000 / CHUNK > 1e-4


def centred(k):
    n = len(k)
    hollow = k - k.diagonal().diag()
    rows, total = hollow.sum(0) / (n - 2), hollow.sum() / (n - 1) / (n - 2)
    k = hollow - rows[:, None] - rows + total
    return k - k.diagonal().diag()


def rms(k):
    return (k.square().sum() / (len(k) * (len(k) - 3))) ** 0.5


@pytest.mark.parametrize("spread", [None, 0.0, 0.04])
@pytest.mark.parametrize(
    ("dtype", "operand", "limit"), [(torch.float16, "fp16", 40), (torch.bfloat16, "bf16", 200)]
)
def test_values_that_go_as_they_are_lose_no_more_than_rounding_may(dtype, operand, limit, spread):
    """At the limit where that is decided, and cut off as above, in a single chunk.

    spread: of the first feature, which is most of the sums from the first step on; None is of none.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    n = 64
    x = normal(n, 8) @ normal(8, CHUNK) / 8 + normal(n, CHUNK)
    common = limit * rms(centred(x @ x.T)) - x.square().sum(1).mean()
    if spread is None:
        x += (common / CHUNK) ** 0.5
    else:
        x[:, 0] = common**0.5 * (1 + spread * x[:, 0])
    x = x.to(dtype).double()
    exact = centred(x @ x.T)
    assert 0.2 * limit <= x.square().sum(1).mean() / rms(exact) <= 1.1 * limit
    total = torch.zeros(n, n, dtype=torch.float64)
    for values in x.split(16, dim=1):
        total = cut(total + values @ values.T, 24)
    rounded = (x - x.mean(0)).to(dtype).double()
    error, other = (rms(centred(k) - exact) for k in (total, rounded @ rounded.T))
    if spread is None:
        assert error <= other
        assert error <= 4e-7 * limit * rms(exact)
    assert error <= 5e-6 * limit * rms(exact) <= OPERAND[operand] * rms(exact)
