"""gram_finish in Triton: one launch of each kernel for all layers of a kind."""

from fastcka.kernels.gpu_gram import gram_finish_all
from fastcka.kernels.triton_finish import finish_all
from fastcka.kernels.triton_launch import Batch


def gram_finish(layers, operands, packed, diagonal, row_sums, summary, estimator: str) -> None:
    out = packed, diagonal, row_sums, summary
    gram_finish_all(Batch, finish_all, layers, operands, out, estimator)
