"""HOW it is fast: a few operations on activations and Gram matrices, each in several versions.

    gram        activations [n, ...] -> the Gram matrix of their centred rows
    finish      a Gram matrix -> its centred, packed triangle
    gram_finish both, of many layers at once
    hsic_pairs  packed triangles of all layers -> their inner products: HSICs but for a factor
    rbf         a linear Gram matrix -> the Gaussian one

`dispatch` alone decides which version runs: where nobody says, the fastest by the tables that
`measure_speed` measures. Kernels know nothing of models or layers.
"""

from fastcka.kernels import operators  # noqa: F401 - defines them
from fastcka.kernels.benchmark import measure_speed
from fastcka.kernels.dispatch import using
from fastcka.kernels.gaussian import rbf
from fastcka.kernels.operations import (
    Finished,
    Gram,
    finish,
    gram,
    gram_finish,
    hsic_pairs,
    packed_length,
    packed_place,
)

__all__ = [
    "Finished",
    "Gram",
    "finish",
    "gram",
    "gram_finish",
    "hsic_pairs",
    "measure_speed",
    "packed_length",
    "packed_place",
    "rbf",
    "using",
]
