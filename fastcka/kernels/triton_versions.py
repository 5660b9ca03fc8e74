"""The versions in Triton: imported when they are first called, as importing it takes a while."""

import os
from importlib.util import find_spec

import torch

# Tensor cores that multiply 16-bit types and add up in float32.
OLDEST = (8, 0)
# Compilers of Triton before end the process at products in float64 for AMD's GPUs.
OLDEST_FOR_AMD = (3, 8)
# Of every launch: multiplications and additions are fused, whatever Triton does unasked.
FUSED = {"enable_fp_fusion": True}


def obstacle(device: torch.device) -> str | None:
    """Why they cannot run on a device; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "Triton compiles for GPUs"
    if device.type != "cuda":
        return f"there are no Triton kernels for {device.type}"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.version.hip:
        return None if release() >= OLDEST_FOR_AMD else "AMD's GPUs need Triton 3.8"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "this GPU is older than compute capability 8.0"
    return None


def release() -> tuple[int, int]:
    """The version of Triton."""
    import triton

    major, minor, *_ = triton.__version__.split(".")
    return int(major), int(minor)


def gram(*arguments) -> None:
    from fastcka.kernels import triton_launch

    triton_launch.gram(*arguments)


def finish(*arguments) -> None:
    from fastcka.kernels import triton_finish

    triton_finish.finish(*arguments)


def gram_finish(*arguments) -> None:
    from fastcka.kernels import triton_gram_finish

    triton_gram_finish.gram_finish(*arguments)


def hsic_pairs(*arguments) -> None:
    from fastcka.kernels import triton_hsic

    triton_hsic.hsic_pairs(*arguments)
