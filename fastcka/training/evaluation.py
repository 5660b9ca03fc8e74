"""How well a trained network does on new images, and which cue it goes by."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastcka.data.cues import Cues
from fastcka.training.pool import pool
from fastcka.training.recipe import LABELS

SEED = 2  # of the test images
COUNT = 5_000
BATCH = 250


def evaluate(
    network: nn.Module,
    label: str,
    device: torch.device | str = "cpu",
    *,
    folder: Path,
    workers: int = 0,
    hidden: bool = True,
) -> dict:
    """What a network answers to new images, in which every cue is independent of the others.

    Args:
        folder: where the images are kept: drawn once for all networks.
        workers: processes that draw them; 0 draws in this one.
        hidden: shows no progress.

    Returns:
        accuracy: share of right answers.
        shuffled: the same when the cue it has learned tells nothing of the label: chance is 1/8.
        follows: by cue, the share of answers that name it, where shape and texture disagree.
    """
    from tqdm import tqdm

    # All that do not depend on the label are the same for every network.
    tests = [
        Cues(COUNT, seed=SEED),
        Cues(COUNT, seed=SEED, label=label, shuffled=[label]),
        Cues(COUNT, seed=SEED, conflict=True),
    ]
    shown = {"total": len(tests) * COUNT, "unit": "image", "disable": hidden or None, "delay": 1}
    with tqdm(desc="drawing images to test on", **shown) as bar:
        drawn = [pool(images, folder, workers, bar.update) for images in tests]
    with tqdm(desc="testing", **shown) as bar:
        plain, shuffled, conflict = (
            (_answers(network, pixels, device, bar.update), images.factors(range(COUNT)))
            for images, (pixels, *_) in zip(tests, drawn, strict=True)
        )
    return {
        "accuracy": _agreement(plain, label),
        "shuffled": _agreement(shuffled, "label"),
        "follows": {cue: _agreement(conflict, cue) for cue in LABELS},
    }


def _agreement(answered: tuple[np.ndarray, dict], factor: str) -> float:
    answers, factors = answered
    return int((answers == factors[factor]).sum()) / len(answers)


def _answers(
    network: nn.Module,
    pixels: np.ndarray,
    device: torch.device | str,
    tell: Callable[[int], object],
) -> np.ndarray:
    """What the network says to the images."""
    mean, deviation = (
        torch.tensor(network.pretrained_cfg[name], device=device) for name in ("mean", "std")
    )
    answers = []
    for start in range(0, len(pixels), BATCH):
        part = torch.from_numpy(pixels[start : start + BATCH].copy())
        x = (part.to(device).float() / 255 - mean) / deviation
        with torch.inference_mode():
            answers.append(network(x.permute(0, 3, 1, 2)).argmax(1).cpu())
        tell(len(part))
    return torch.cat(answers).numpy()
