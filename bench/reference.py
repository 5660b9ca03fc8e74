"""What is right, in float64 on the device of the data, and how far from it a result is.

`fastcka.maths` defines the same in NumPy; a test holds the two together.
"""

import math

import torch

# ‖out − ref‖ / ‖ref‖ of the packed, U-centred triangle, by the type of the values multiplied: what
# the package allows in CKA. An error e of this kind moves a CKA by e at most, a self-CKA by e²/2.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-4,
    torch.bfloat16: 1e-3,
}
OPERANDS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Where all is float64, only the order of the sums differs.
FLOAT64 = 1e-12
# A baseline is not ours to judge: it must only be the same computation.
SANE = 1e-2


def gram64(x):
    """The product of the centred rows with each other, piece by piece."""
    k = torch.zeros(x.shape[0], x.shape[0], dtype=torch.float64, device=x.device)
    for part in x.split(16_384, dim=1):
        part = part.double()
        part = part - part.mean(0)
        k.addmm_(part, part.T)
    return k


def packed(k):
    """The U-centred strict lower triangle, times √2. Reads the strict lower triangle only.

    It does not see a row common to all examples: a product without centring compares too.
    """
    n = k.shape[0]
    lower = k.double().tril(-1)
    hollow = lower + lower.T
    sums = hollow.sum(1)
    u = hollow - (sums + sums[:, None]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    rows, columns = torch.tril_indices(n, n, -1, device=k.device)
    return u[rows, columns] * math.sqrt(2)


def relative_error(out, expected):
    return ((out.double() - expected).norm() / expected.norm()).item()
