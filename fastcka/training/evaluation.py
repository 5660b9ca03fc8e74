"""How well a trained network does on new images, and which cue it goes by."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from fastcka.data.cues import Cues
from fastcka.data.cues.scene import render

SEED = 2  # of the test images
COUNT = 5_000
BATCH = 250


def accuracy(network: nn.Module, label: str, device: torch.device | str = "cpu") -> float:
    """Share of right answers on 5,000 new images; the label is one cue, all others independent."""
    right = 0
    for answers, factors in _answers(network, Cues(COUNT, seed=SEED, label=label), device):
        right += int((answers == factors["label"]).sum())
    return right / COUNT


def _answers(
    network: nn.Module, images: Cues, device: torch.device | str
) -> Iterator[tuple[np.ndarray, dict]]:
    """What the network says to a batch of images, and their factors."""
    mean, deviation = (
        torch.tensor(network.pretrained_cfg[name], device=device) for name in ("mean", "std")
    )
    for start in range(0, len(images), BATCH):
        factors = images.factors(range(start, min(start + BATCH, len(images))))
        pixels = np.stack(
            [
                render(dict(zip(factors, row, strict=True)), images.size, images.trigger).image
                for row in zip(*factors.values(), strict=True)
            ]
        )
        x = torch.from_numpy(pixels).to(device).float() / 255
        with torch.inference_mode():
            logits = network(((x - mean) / deviation).permute(0, 3, 1, 2))
        yield logits.argmax(1).cpu().numpy(), factors
