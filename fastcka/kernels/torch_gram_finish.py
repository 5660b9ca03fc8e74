"""gram_finish in torch: one layer after the other."""

from fastcka.kernels import torch_finish, torch_gram


def gram_finish(layers, operands, packed, diagonal, row_sums, summary, estimator: str) -> None:
    n = len(layers[0])
    k, stats = packed.new_empty(n, n), packed.new_empty(3)
    for row, (x, operand) in enumerate(zip(layers, operands, strict=True)):
        torch_gram.gram(x, operand, k, stats)
        out = (packed[row], diagonal[row], row_sums[row], summary[row])
        torch_finish.finish(k, stats, *out, estimator)
