"""gram in torch: the portable version, and the reference for the others on their own device."""

import torch

from fastcka.kernels.precision import CHUNK, accumulator, full_precision_products


def gram(x: torch.Tensor, operand: torch.dtype, k: torch.Tensor, stats: torch.Tensor) -> None:
    exponent = _exponent(x, operand)
    k.zero_()
    stats.zero_()
    with full_precision_products(x.device):
        for start in range(0, x.shape[1], CHUNK):
            part = torch.ldexp(x[:, start : start + CHUNK].to(accumulator(x.dtype)), -exponent)
            # Around the first row, so that the mean of equal rows is that row to the last bit.
            mean = part[0] + (part - part[0]).mean(0)
            part = part - mean
            k += _products(part, operand)
            stats[0] += mean.double().square().sum()
    k.copy_(torch.ldexp(k, 2 * exponent))
    stats.copy_(torch.ldexp(stats, 2 * exponent))
    stats[2] = k.diagonal().sum()
    stats[1] = stats[2] + x.shape[0] * stats[0]


def _exponent(x: torch.Tensor, operand: torch.dtype) -> torch.Tensor:
    """The power of two to divide by, so that products of float32 or half values stay in range."""
    largest = torch.linalg.vector_norm(x.reshape(-1), float("inf")).double()
    exponent = torch.frexp(largest).exponent.clamp(-126, 127)
    exponent = torch.where(torch.isfinite(largest), exponent, 0)
    return exponent - 14 if operand == torch.float16 else exponent


def _products(part: torch.Tensor, operand: torch.dtype) -> torch.Tensor:
    if operand in (torch.float16, torch.bfloat16):
        rounded = part.to(operand)
        if part.is_cuda:
            return torch.mm(rounded, rounded.T, out_dtype=torch.float32).double()
        part = rounded.float()  # exact: a product of two 16-bit values fits float32
    return (part @ part.T).double()
