"""The C++ and CUDA versions: allocates what they write to and passes the thread count.

`torch` is imported before the module, so that both use the OpenMP runtime that torch brings.
"""

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


def gram(x: torch.Tensor, operand: torch.dtype, k: torch.Tensor, stats: torch.Tensor) -> None:
    threads = torch.get_num_threads()
    # 64 bytes more than asked for: the workspace starts at a boundary of 64.
    size = module.gram_workspace(x, threads) + 64
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    name = {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(operand, "float32")
    module.gram(x, k, stats, workspace, name, threads)


def finish(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    module.finish(k, stats, packed, diagonal, row_sums, summary, estimator == "biased")


def hsic_pairs(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    module.hsic_pairs(a, b, out, torch.get_num_threads())
