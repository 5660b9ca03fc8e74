"""Activations for tests."""

import numpy as np
import torch

from fastcka.maths import cka as definition

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def related(n, p, q, *, seed=0, dtype=torch.float64, device="cpu"):
    """Two representations of n examples that share part of their structure."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    mixing = torch.randn(p, q, generator=generator, dtype=torch.float64) / p**0.5
    y = x @ mixing + 0.7 * torch.randn(n, q, generator=generator, dtype=torch.float64)
    return x.to(dtype).to(device), y.to(dtype).to(device)


def defined_cka(x, y, **options):
    """CKA by the float64 definition, on the values as received."""
    return definition.cka(as_float64(x), as_float64(y), **options)


def as_float64(x):
    return x.detach().cpu().double().flatten(1).numpy()


def minibatch_cka(batches, **options):
    """CKA of one layer with another by MinibatchCKA, from (x, y) batches."""
    import fastcka

    cka = fastcka.MinibatchCKA(["x"], ["y"], **options)
    for x, y in batches:
        cka.update([x], [y])
    return float(cka.compute().cka[0, 0])


def rotation(p, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(p, p)))[0]


def layers(n, count, seed, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, 30, generator=generator)
    return [
        (first @ torch.randn(30, 20 + 7 * i, generator=generator) + 0.5).relu().to(dtype).to(device)
        for i in range(count)
    ]


def names(count, prefix="l"):
    return [f"{prefix}{i}" for i in range(count)]
