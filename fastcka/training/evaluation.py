"""How well a trained network does on new images, and which cue it goes by."""

import numpy as np
import torch
from torch import nn

from fastcka.data.cues import Cues
from fastcka.data.cues.scene import render
from fastcka.training.recipe import LABELS

SEED = 2  # of the test images
COUNT = 5_000
BATCH = 250


def evaluate(network: nn.Module, label: str, device: torch.device | str = "cpu") -> dict:
    """What a network answers to new images, in which every cue is independent of the others.

    Returns:
        accuracy: share of right answers.
        shuffled: the same when the cue it has learned tells nothing of the label: chance is 1/8.
        follows: by cue, the share of answers that name it, where shape and texture disagree.
    """
    plain, shuffled, conflict = (
        _answers(network, Cues(COUNT, seed=SEED, label=label, **options), device)
        for options in ({}, {"shuffled": [label]}, {"conflict": True})
    )
    return {
        "accuracy": _agreement(plain, "label"),
        "shuffled": _agreement(shuffled, "label"),
        "follows": {cue: _agreement(conflict, cue) for cue in LABELS},
    }


def _agreement(answered: tuple[np.ndarray, dict], factor: str) -> float:
    answers, factors = answered
    return int((answers == factors[factor]).sum()) / len(answers)


def _answers(
    network: nn.Module, images: Cues, device: torch.device | str
) -> tuple[np.ndarray, dict]:
    """What the network says to the images, and their factors."""
    mean, deviation = (
        torch.tensor(network.pretrained_cfg[name], device=device) for name in ("mean", "std")
    )
    factors = images.factors(range(len(images)))
    rows = (dict(zip(factors, row, strict=True)) for row in zip(*factors.values(), strict=True))
    pixels = np.stack([render(row, images.size, images.trigger).image for row in rows])
    answers = []
    for part in torch.from_numpy(pixels).split(BATCH):
        x = (part.to(device).float() / 255 - mean) / deviation
        with torch.inference_mode():
            answers.append(network(x.permute(0, 3, 1, 2)).argmax(1).cpu())
    return torch.cat(answers).numpy(), factors
