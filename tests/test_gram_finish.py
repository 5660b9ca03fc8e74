import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data import DTYPES, as_float64
from tolerance import CKA, HSIC, UNIT, assert_close, gram_entry

from fastcka.kernels import Finished, finish, gram, gram_finish, hsic_pairs, native, packed_length
from fastcka.maths import finish as definition
from fastcka.maths import gram as define_gram

# Either side of the width from which on all threads share a layer.
WIDTHS = [1, 40, 700, 4095, 4096, 9000]


def layers(n, device="cpu"):
    return [
        (torch.randn(n, p, dtype=torch.float64) + 1).to(DTYPES[i % 4]).to(device)
        for i, p in enumerate(WIDTHS)
    ]


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("n", [4, 16, 37])
def test_every_row_is_the_definition_of_its_layer(version, estimator, n):
    xs = layers(n, version)
    result = gram_finish(xs, estimator=estimator)
    for row, x in enumerate(xs):
        values = define_gram.subtract_mean_row(as_float64(x))
        expected = torch.from_numpy(definition.pack(values @ values.T, estimator))
        error = (result.packed[row].cpu() - expected).norm().item()
        # Centring is a projection, and the packed triangle has the norm of the whole matrix.
        terms = np.linalg.norm(abs(values) @ abs(values).T)
        operand = x.dtype if x.is_cuda else None
        assert error <= gram_entry(x.dtype, values.shape[1], operand, x.is_cuda) * terms
        rounded = 4 * UNIT.get(operand, 0.0)
        assert_close(result.summary[row, 0] / expected.square().sum(), 1.0, HSIC + rounded)


def test_it_is_gram_and_then_finish(version):
    xs = layers(21, version)
    together = gram_finish(xs)
    for row, x in enumerate(xs):
        apart = finish(gram(x))
        for mine, its in zip(together, apart, strict=True):
            scale = its.abs().max()
            # Sums of features in another order: in float32 before they are in float64.
            assert_close(mine[row] / scale, its / scale, 1e-6)


def test_rows_of_larger_tensors_are_written_in_place(version):
    xs, n = layers(8, version), 8
    sizes = (packed_length(n, "unbiased"), n, n, 5)
    whole = [torch.full((9, size + 3), torch.nan, device=version).double() for size in sizes]
    into = Finished(*(part[2:8, : part.shape[1] - 3] for part in whole))
    assert gram_finish(xs, into=into) is into
    expected = gram_finish(xs)
    for part, result in zip(whole, expected, strict=True):
        assert torch.equal(part[2:8, :-3], result)
        for around in (part[:2], part[8:], part[:, -3:]):
            assert around.isnan().all()


@pytest.mark.parametrize("bad", range(len(WIDTHS)))
@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_that_is_not_finite_touches_no_other(version, bad, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        xs = layers(12, version)
        healthy = gram_finish(xs)
        xs[bad][3, -1] = float("inf")
        result = gram_finish(xs)
    finally:
        torch.set_num_threads(before)
    assert result.summary[bad, 0].isnan()
    for row in set(range(len(WIDTHS))) - {bad}:
        for mine, its in zip(result, healthy, strict=True):
            assert torch.equal(mine[row], its[row])


def test_each_thread_count_repeats_its_bits_and_all_agree():
    xs = layers(30)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5, 1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gram_finish(xs, backend="native").packed)
    finally:
        torch.set_num_threads(before)
    for first, second in zip(results[:3], results[3:], strict=True):
        assert torch.equal(first, second)
        error = (first - results[0]).norm(dim=1) / results[0].norm(dim=1)
        assert error.max() <= CKA


def test_narrow_layers_that_are_dealt_have_the_bits_of_one_thread():
    xs = [torch.randn(16, 300) for _ in range(7)]
    whole = gram_finish(xs, backend="native").packed
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [gram_finish([x], backend="native").packed[0] for x in xs]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, torch.stack(alone))


@pytest.mark.slow
def test_threads_that_the_workspace_has_no_room_for_are_left_out():
    # 145 MB a part: three fit within the limit of 512.
    n, p = 4200, 1500
    x = torch.randn(n, p)
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert native.module.gram_workspace(x, 5) == native.module.gram_workspace(x, 3)
        k = gram(x, backend="native").k
        many = native.module.gram_finish_workspace([x] * 5, 5)
        assert many == native.module.gram_finish_workspace([x] * 5, 3)
    finally:
        torch.set_num_threads(before)
    values = define_gram.subtract_mean_row(as_float64(x))
    rows = [0, 17, 2000, n - 1]
    expected = values[rows] @ values.T
    for row, mine in zip(rows, expected, strict=True):
        bound = gram_entry(x.dtype, p) * (abs(values[row]) @ abs(values).T)
        assert (abs(k[row].numpy() - mine)[: row + 1] <= bound[: row + 1]).all()


def test_the_rate_of_multiply_adds_is_that_of_a_processor():
    assert 1e9 < native.multiply_add_rate(1) < 1e12


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not():
    # Outside of fastcka NumPy alone: the operations of torch do wait.
    code = """
import os, signal
import numpy as np
import torch
from fastcka.kernels import gram, gram_finish, hsic_pairs

torch.set_num_threads(2)
x = torch.randn(64, 20_000)
first = np.tril(gram(x).k.numpy())
child = os.fork()
if child == 0:
    signal.alarm(30)
    k = np.tril(gram(x).k.numpy())
    assert abs(k - first).max() <= 1e-6 * abs(first).max()
    hsic_pairs(gram_finish([x, x]).packed)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, f"the child ended with {status}"
assert (np.tril(gram(x).k.numpy()) == first).all()
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc of Linux")
def test_the_threads_of_torch_live_on_and_have_no_others_beside_them():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        torch.randn(1 << 20).exp()
        started = set(os.listdir("/proc/self/task"))
        # Fewer blocks, layers and rows than threads.
        hsic_pairs(gram_finish([torch.randn(8, p) for p in (600, 700, 9000)]).packed)
        gram(torch.randn(8, 600))
        torch.randn(1 << 20).exp()
        assert set(os.listdir("/proc/self/task")) == started
    finally:
        torch.set_num_threads(before)
