"""The C++ versions: allocates what they write to and passes the thread count. Those for GPUs are
called by `cuda_launch`.

`torch` is imported before the module, so that both use the OpenMP runtime that torch brings. Its
threads do not survive a fork, and whoever asks for them in the child waits for ever: a forked
process multiplies with one.
"""

import os
import time
from importlib import import_module
from pathlib import Path

import torch

try:
    module = import_module("fastcka._native")
    missing = None
except ImportError as error:
    module = None
    missing = str(error)
    if (Path(__file__).parents[2] / "CMakeLists.txt").exists():
        missing = (
            "Python was started in the source folder, which hides an installed fastcka: start it "
            "elsewhere, or install with `pip install -e .`"
        )


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)

_OPERAND = {torch.float16: "float16", torch.bfloat16: "bfloat16"}

# Tensor cores that multiply 16-bit types and TF32, and copies in the background.
OLDEST = (8, 0)


def obstacle(device: torch.device) -> str | None:
    """Why the native kernels cannot run on a device; None where they can."""
    if module is None:
        return f"the native kernels are not installed ({missing})"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"there are no native kernels for {device.type}"
    if torch.version.hip:
        return "there are no native kernels for AMD's GPUs"
    if module.build_info()["cuda"] is None:
        return "this installation was built without CUDA"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "this GPU is older than compute capability 8.0"
    return None


def operand_name(operand: torch.dtype) -> str:
    return _OPERAND.get(operand, "float32")


def gram(x: torch.Tensor, operand: torch.dtype, k: torch.Tensor, stats: torch.Tensor) -> None:
    threads = thread_count()
    workspace = _workspace(module.gram_workspace(x, threads))
    module.gram(x, k, stats, workspace, operand_name(operand), threads)


def finish(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    module.finish(k, stats, packed, diagonal, row_sums, summary, estimator == "biased")


def gram_finish(layers, operands, packed, diagonal, row_sums, summary, estimator: str) -> None:
    threads = thread_count()
    workspace = _workspace(module.gram_finish_workspace(layers, threads))
    names = [operand_name(operand) for operand in operands]
    out = (packed, diagonal, row_sums, summary)
    module.gram_finish(layers, names, *out, workspace, estimator == "biased", threads)


def hsic_pairs(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    module.hsic_pairs(a, b, out, thread_count())


def multiply_add_rate(threads: int) -> float:
    """float32 operations a second that this processor can do at best: the floor of benchmarks."""
    rounds = 1_000_000  # some milliseconds
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        flop = module.multiply_adds(rounds, threads)
        best = max(best, flop / (time.perf_counter() - start))
    return best


def thread_count() -> int:
    """Threads that a kernel runs with now."""
    return 1 if _forked else torch.get_num_threads()


def _workspace(size: int) -> torch.Tensor:
    # 64 bytes more than asked for: it starts at a boundary of 64.
    return torch.empty(size + 64, dtype=torch.uint8, device="cpu")
