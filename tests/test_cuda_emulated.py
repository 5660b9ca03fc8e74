"""The CUDA kernels on a GPU that tests/native/cuda_emulation.h plays on this processor, with the
tables and launches that a GPU gets. The kernels alone, by every tile: tests/native/cuda_driver.cpp.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data import as_float64
from tolerance import CKA, HSIC, REORDERED, UNIT, assert_close, gram_entry

from fastcka.kernels import (
    Finished,
    cuda_launch,
    dispatch,
    finish,
    gpu_gram,
    gram,
    gram_finish,
    hsic_pairs,
    native,
)
from fastcka.kernels.schedule import PAIR, SLIM
from fastcka.maths import gram as definition

pytestmark = pytest.mark.slow
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The native module with the emulated GPU in it."""
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("emulated")
    configure = ["cmake", "-S", Path(__file__).parents[1], "-B", folder]
    configure += ["-DFASTCKA_EMULATE_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", folder, "-j2"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no cmake")
        assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("_native*.so")
    spec = importlib.util.spec_from_file_location("_native", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.build_info()["cuda"] == "emulated"
    return module


@pytest.fixture(autouse=True)
def emulated(built, monkeypatch):
    monkeypatch.setattr(native, "module", built)
    for operation, version in dispatch.NATIVE_ON_CUDA.items():
        monkeypatch.setitem(dispatch.OPERATIONS[operation], "native", version)
    with dispatch.using("native"):
        yield


def check(k, x, operand=None, dtype=None):
    values = torch.from_numpy(definition.subtract_mean_row(as_float64(x)))
    expected, terms = values @ values.T, values.abs() @ values.abs().T
    # The pivot is the mean of a few rows: what is rounded is up to twice what is left of the mean.
    bound = gram_entry(dtype or x.dtype, x.shape[1]) + 2 * UNIT.get(operand, 0.0)
    error = (k.tril() - expected.tril()).abs() / terms
    assert error.max() <= bound, f"{error.max() / bound:.3g} times the bound"


@pytest.mark.parametrize("pair", [PAIR, SLIM])
@pytest.mark.parametrize("n", [5, 70, 140])
@pytest.mark.parametrize("features", [136, 131])  # whole pieces of 16 bytes, and not
@pytest.mark.parametrize("operand", TYPES)
def test_every_tile_gives_the_definition(monkeypatch, pair, n, features, operand):
    monkeypatch.setattr(cuda_launch, "_shared", lambda device: (164 if pair is PAIR else 100) << 10)
    x = (torch.randn(n, features) + 1).to(TYPES[operand])
    check(gram(x, operand=operand).k, x, TYPES[operand])


@pytest.mark.parametrize("n", [130, 300])
@pytest.mark.parametrize("operand", ["fp16", "bf16"])
def test_triangles_of_256_rows_give_the_definition(monkeypatch, n, operand):
    monkeypatch.setenv("FASTCKA_GPU_ISA", "wgmma")
    for features in (136, 131):  # the second by value, so by other tiles
        x = (torch.randn(n, features) + 1).to(TYPES[operand])
        check(gram(x, operand=operand).k, x, TYPES[operand])


def test_an_unknown_name_of_what_multiplies_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTCKA_GPU_ISA", "wmma")
    with pytest.raises(RuntimeError, match="FASTCKA_GPU_ISA must be one of mma, wgmma"):
        gram(torch.randn(5, 40))


@pytest.mark.parametrize("programs", [1, 3])
def test_what_is_longer_than_a_chunk_is_added_up_in_its_slot(monkeypatch, programs):
    monkeypatch.setattr(gpu_gram, "processors", lambda device: programs)
    x = torch.randn(5, 9000, dtype=torch.float16)
    check(gram(x, operand="fp16").k, x, torch.float16)


def test_layers_of_all_types_go_together_in_one_stack():
    layers = [torch.randn(6, 40).to(t) for t in (*TYPES.values(), torch.float64, torch.float16)]
    for estimator in ("unbiased", "biased"):
        together = gram_finish(layers, estimator=estimator)
        for row, x in enumerate(layers):
            apart = finish(gram(x), estimator=estimator)
            for mine, its in zip(together, apart, strict=True):
                assert_close(mine[row] / its.abs().max(), its / its.abs().max(), 1e-6)
    assert torch.equal(gram_finish(layers).packed, gram_finish(layers).packed)
    assert torch.equal(hsic_pairs(together.packed), hsic_pairs(together.packed).T)


def test_rows_of_larger_tensors_are_written_in_place():
    layers = [torch.randn(6, 40), torch.randn(6, 9)]
    whole = [torch.full((4, size + 3), torch.nan).double() for size in (15, 6, 6, 5)]
    into = Finished(*(part[1:3, :-3] for part in whole))
    gram_finish(layers, into=into)
    for part, expected in zip(whole, gram_finish(layers), strict=True):
        assert torch.equal(part[1:3, :-3], expected)
        for around in (part[:1], part[3:], part[:, -3:]):
            assert around.isnan().all()


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_an_offset_costs_no_digits(offset):
    x = torch.randn(40, 600) + offset
    packed, _, _, summary = gram_finish([x])
    expected = gram_finish([x.double()], backend="torch")
    cosine = packed[0] @ expected.packed[0] / packed[0].norm() / expected.packed[0].norm()
    assert 1 - cosine <= CKA
    assert_close(summary[0, 0] / expected.summary[0, 0], 1.0, HSIC)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e15, 1e30])
def test_values_whose_squares_leave_float32_keep_their_digits(scale):
    x = torch.randn(20, 300) * scale
    check(gram(x).k / scale / scale, x.double() / scale, dtype=torch.float32)


@pytest.mark.parametrize(
    ("operand", "scale"),
    [("fp16", 1e-6), ("fp16", 1e4), ("bf16", 1e-38), ("bf16", 1e-30), ("bf16", 1e30)],
)
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_16_bit_values_at_the_ends_of_their_type_keep_their_digits(operand, scale, offset):
    x = ((torch.randn(20, 300) + offset * torch.randn(300)) * scale).to(TYPES[operand])
    x = x.clamp(-6e4, 6e4) if operand == "fp16" else x
    check(gram(x, operand=operand).k, x, TYPES[operand])


def test_equal_rows_give_a_gram_matrix_of_zeros():
    for operand, dtype in TYPES.items():
        x = torch.randn(700).to(dtype).expand(13, -1).clone()
        k = gram(x, operand=operand).k
        assert torch.equal(k.tril(), torch.zeros(13, 13, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "columns", "length"), [(1, 1, 6), (9, 40, 2016), (3, 6, 9000)])
def test_every_pair_is_the_inner_product(rows, columns, length):
    a, b = (torch.randn(count, length, dtype=torch.float64) for count in (rows, columns))
    expected = (a[:, None] * b[None]).sum(-1)
    scale = length**0.5
    assert_close(hsic_pairs(a, b) / scale, expected / scale, REORDERED)


def test_a_step_that_the_kernel_does_not_take_is_refused(monkeypatch):
    monkeypatch.setattr(cuda_launch, "STEP", 64)
    with pytest.raises(RuntimeError, match="a step of these products has 64 features, not 32"):
        gram(torch.randn(5, 40).half(), operand="fp16")
