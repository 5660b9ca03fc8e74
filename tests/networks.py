"""Small networks, images, and what CKA of them is by definition."""

import numpy as np
import torch
from data import as_float64
from torch import nn

from fastcka.capture import Capture
from fastcka.maths import cka as definition


def net(inplace=True, seed=0, size=8, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(width * size * size, 5),
    ).eval()


def images(count, size=8, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def activations(model, x, layers="leaves"):
    """Every layer of one forward pass in evaluation mode, in order."""
    taken, hooks = {}, Capture(model, layers)
    with torch.no_grad():
        hooks.run(lambda m: m(x.clone()), len(x), lambda name, a: taken.update({name: a.clone()}))
    return [taken[name] for name in hooks.layers]


def defined(model_a, model_b, batches, layers="leaves"):
    """Minibatch CKA of all pairs by the float64 definition, on the activations as they are."""
    a = [[as_float64(x) for x in activations(model_a, batch, layers)] for batch in batches]
    b = [[as_float64(y) for y in activations(model_b, batch, layers)] for batch in batches]
    return np.array(
        [
            [
                definition.minibatch([xs[i] for xs in a], [ys[j] for ys in b])
                for j in range(len(b[0]))
            ]
            for i in range(len(a[0]))
        ]
    )
