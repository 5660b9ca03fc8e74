"""finish in torch: see csrc/cpu/finish.cpp for the formulas."""

import math

import torch


def finish(k, stats, packed, diagonal, row_sums, summary, estimator: str) -> None:
    n = k.shape[0]
    lower = torch.tril(k, -1)  # what lies above the diagonal is not defined
    hollow = lower + lower.T
    diagonal.copy_(k.diagonal())
    row_sums.copy_(hollow.sum(1))
    if estimator == "biased":
        sums = row_sums + diagonal
        centred = hollow + torch.diag(diagonal)
        centred = centred - (sums + sums[:, None]) / n + sums.sum() / n**2
        offset = 0
    else:
        centred = hollow - (row_sums + row_sums[:, None]) / (n - 2)
        centred += row_sums.sum() / ((n - 1) * (n - 2))
        offset = -1
    centred *= math.sqrt(2)
    centred.diagonal().div_(math.sqrt(2))
    rows, columns = torch.tril_indices(n, n, offset, device=k.device)
    packed.copy_(centred[rows, columns])
    squares = hollow.square().sum()
    raw = squares + diagonal.square().sum() + (n * stats[0]).square()
    summary[0] = packed.square().sum()
    summary[1] = squares
    summary[2] = stats[2]
    summary[3] = stats[1]
    summary[4] = torch.sqrt((raw / n**2) / (summary[0] / (n * (n - 1))))
