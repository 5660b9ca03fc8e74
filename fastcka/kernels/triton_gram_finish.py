"""gram_finish in Triton: one launch of each kernel for all layers."""

from fastcka.kernels.triton_finish import finish_all
from fastcka.kernels.triton_launch import gram_all


def gram(x, operand, k, stats) -> None:
    gram_all([x], [operand], k[None], stats[None])


def gram_finish(layers, operands, packed, diagonal, row_sums, summary, estimator: str) -> None:
    n = len(layers[0])
    k, stats = packed.new_empty(len(layers), n, n), packed.new_empty(len(layers), 3)
    gram_all(layers, operands, k, stats)
    finish_all(k, stats, packed, diagonal, row_sums, summary, estimator)
