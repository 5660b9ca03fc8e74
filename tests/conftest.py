import os

# Before torch: workers of pytest-xdist share the cores, where threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from fastcka.kernels import cuda_launch, dispatch, speed

# Deterministic mode asks this of cuBLAS.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# (backend, device): every version that exists; those that cannot run here say why.
VERSIONS = [
    ("native", "cpu"),
    ("torch", "cpu"),
    pytest.param(("torch", "cuda"), marks=pytest.mark.gpu),
    pytest.param(("triton", "cuda"), marks=pytest.mark.gpu),
    pytest.param(("native", "cuda"), marks=pytest.mark.gpu),
]
if os.environ.get("TRITON_INTERPRET") == "1":  # in a process of its own: see test_triton.py
    VERSIONS = [("triton", "cpu")]


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(autouse=True)
def same_start(monkeypatch, tmp_path_factory):
    """Fixed seeds, memory that is NaN until written, no backend named or measured elsewhere."""
    monkeypatch.delenv("FASTCKA_BACKEND", raising=False)
    nothing = tmp_path_factory.getbasetemp() / "nothing"
    monkeypatch.setenv("FASTCKA_CACHE", str(nothing))
    monkeypatch.setattr(speed, "SHIPPED", nothing)
    speed.forget()
    torch.manual_seed(0)
    np.random.seed(0)
    # In deterministic mode torch fills empty tensors with NaN: what a kernel forgets is seen.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=VERSIONS, ids="-".join)
def version(request):
    """A backend and the device it runs on, in force for the test."""
    backend, device = request.param
    check_that_runs(backend, device)
    with dispatch.using(backend):
        yield torch.device(device)


@pytest.fixture(params=[("triton", None), *(("native", isa) for isa in cuda_launch.ISAS)])
def gpu_kernels(request, monkeypatch):
    """What multiplies on a GPU, in force for the test."""
    backend, isa = request.param
    if isa == "wgmma" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("wgmma is an instruction of compute capability 9.0")
    monkeypatch.setenv("FASTCKA_GPU_ISA", isa or "")
    check_that_runs(backend, "cuda")
    with dispatch.using(backend):
        yield


def check_that_runs(backend, device):
    reason = dispatch.obstacle(backend, torch.device(device))
    if reason and reason.endswith("built without CUDA"):
        pytest.skip(reason)
    if reason:
        pytest.fail(f"{backend} on {device}: {reason}")
