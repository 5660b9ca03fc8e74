"""Keeping torch's float32 products float32.

A user may let torch round float32 operands to TF32 or bfloat16, or run models under autocast, for
their speed. In a Gram matrix that costs more than CKA can bear.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Features whose products are added up in float32 before they join a float64 sum.
CHUNK = 16_384


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which products of activations are added up: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def full_precision_products(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices in float32 within the block, whatever the user allows elsewhere.

    The setting is the whole process's: another thread that multiplies meanwhile is bound by it too.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
