"""Seeing activations as rows without a copy."""

import torch


def read_in_place(x: torch.Tensor) -> bool:
    """Whether `as_rows` needs no copy."""
    return not x.is_neg() and (x.is_contiguous() or _dense_features(x) is not None)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """View activations [n, ...] as rows [n, p] whose features lie in the order of memory.

    A Gram matrix does not see a permutation that all rows share, so a channels_last tensor is read
    as it lies, where `flatten(1)` would copy it. Rows may be any distance apart. Only a tensor
    whose rows are not dense (every other feature of a larger one, a transpose) is copied.

    >>> as_rows(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)).shape
    torch.Size([2, 60])
    """
    x = x.detach()
    if x.is_neg():  # a view whose sign is a flag: kernels would read the values without it
        x = x.resolve_neg()
    if x.is_contiguous():
        return x.flatten(1)
    features = _dense_features(x)
    if features is None:
        return x.reshape(x.shape[0], -1).contiguous()
    return x.as_strided((x.shape[0], features), (x.stride(0), 1))


def _dense_features(x: torch.Tensor) -> int | None:
    """How many values follow each other in memory in every row; None where a row has gaps."""
    strides = sorted(
        (stride, size)
        for stride, size in zip(x.stride()[1:], x.shape[1:], strict=True)
        if size != 1
    )
    features = 1
    for stride, size in strides:
        if stride != features:
            return None
        features *= size
    return features
