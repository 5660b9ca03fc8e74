"""The one table of tolerances. Each follows from the arithmetic; none is fitted to a result."""

import torch

U32 = 2.0**-24  # unit roundoff of float32
U64 = 2.0**-53
# unit roundoff of operands of 16 bits
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def gram_entry(dtype, p, operand=None, on_gpu=False):
    """An entry of the Gram matrix, relative to Σ_k |x_ik| |x_jk| of the centred values.

    A sum of m products in a row errs by m roundings where all agree, and by some sqrt(m) where they
    do not; four times that. In float32 at most 256 products, and the blocks of BLAS, are added in a
    row before the sum goes on in float64; in float64 all p are. An operand of 16 bits rounds both
    factors. Tensor cores add 16 products at once and cut off what float32 does not hold, for up to
    16,384 of them.
    """
    if dtype == torch.float64:
        return (64 + 4 * p**0.5) * U64
    cut = min(p, 16_384) / 16 * 2 * U32 if on_gpu else 0.0
    return 64 * U32 + 2 * UNIT.get(operand, 0.0) + cut


# CKA of a kernel against the float64 definition on the values as received.
CKA = 1e-5
# HSIC, relative: unlike CKA it does not forgive a common factor.
HSIC = 1e-4
# What the operand adds by rounding centred values to 11 and to 8 bits.
OPERAND = {"fp32": 1e-5, "fp16": 2e-4, "bf16": 1e-3}

# Invariance to rotation, scale and offsets up to 1e4 standard deviations, float32 and float64.
INVARIANCE = 1e-4
# A 16-bit value near 100 (half) or 10 (bfloat) is rounded to multiples of 1/16: an error of
# variance (1/16)²/12 = 3.3e-4 beside values of variance 1, which lowers CKA by about as much; three
# times that.
INVARIANCE_16 = 1e-3

# Two float64 routes to one number; their longest sums have some 1e6 terms.
FLOAT64 = 1e-10
# Sums of the same float64 terms in another order.
REORDERED = 1e-12

# Roots of eigenvalues that are 0 but for rounding: √(n u) of the largest, n = 24, of the type in
# which products are added up.
ROOTS = {torch.float32: (24 * U32) ** 0.5, torch.float64: (24 * U64) ** 0.5 * 24}


def assert_close(actual, expected, tolerance):
    """|actual − expected| <= tolerance everywhere; NaN is never close."""
    actual = torch.as_tensor(actual, dtype=torch.float64).cpu()
    expected = torch.as_tensor(expected, dtype=torch.float64).cpu()
    assert actual.shape == expected.shape, f"shape {actual.shape} for {expected.shape}"
    error = (actual - expected).abs()
    worst = error.max().item() if not error.isnan().any() else float("nan")
    assert worst <= tolerance, f"off by {worst:.3g}, allowed are {tolerance:.3g}"
