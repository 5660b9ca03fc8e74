"""gram_finish in Triton: one launch of each kernel for all layers of a kind."""

import torch

from fastcka.kernels import torch_gram
from fastcka.kernels.gpu_gram import batches, put_back
from fastcka.kernels.triton_finish import finish_all
from fastcka.kernels.triton_launch import Batch


def gram_finish(layers, operands, packed, diagonal, row_sums, summary, estimator: str) -> None:
    out, n = (packed, diagonal, row_sums, summary), len(layers[0])
    for members, batch in batches(Batch, layers, operands):
        alone = len(members) == len(layers)
        some = out if alone else [part.new_empty(len(members), part.shape[1]) for part in out]
        k = packed.new_empty(len(members), n, n)
        if batch is None:
            stats = k.new_empty(len(members), 3)
            for row, layer in enumerate(members):
                torch_gram.gram(layers[layer], operands[layer], k[row], stats[row])
            finish_all(k, stats, *some, estimator)
        else:
            with torch.cuda.device_of(k):
                stats = batch.multiply(k)
            finish_all(k, stats, *some, estimator, pivoted=True)
        if not alone:
            for part, of_all in zip(some, out, strict=True):
                put_back(part, of_all, members)
