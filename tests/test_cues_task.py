"""The task is not trivial: what sees only pixels, colours or small patches does not solve it."""

import math

import pytest
import torch
from torch import nn

from fastcka.data import Cues
from fastcka.data.cues.factors import CLASSES
from fastcka.training.pool import SEED, pool
from fastcka.training.supervised import turned

pytestmark = pytest.mark.slow

TRAINED, TESTED = 20_000, 5_000
CHANCE = 1 / CLASSES
ERROR = math.sqrt(CHANCE * (1 - CHANCE) / TESTED)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cues")
    train = pool(Cues(TRAINED, seed=SEED), folder, 0)
    test = pool(Cues(TESTED, seed=SEED + 1), folder, 0)
    return [(torch.from_numpy(part.images.copy()), torch.from_numpy(part.cues[:, 0].copy()))
            for part in (train, test)]  # fmt: skip


def ridge(features, labels, new, strength):
    """Least squares to one-hot labels, in closed form."""
    mean, scale = features.mean(0), features.std(0) + 1e-6
    x, y = (features - mean) / scale, nn.functional.one_hot(labels, CLASSES).double() - CHANCE
    weights = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]).double(), x.T @ y)
    return ((new - mean) / scale @ weights).argmax(1)


def shrunk(images):
    """[n, 16 * 16 * 3]: more pixels are fitted worse, not better."""
    return images.double().unflatten(2, (16, 4)).unflatten(1, (16, 4)).mean((2, 4)).flatten(1)


def histogram(images):
    """Counts of 64 colours, and of 32 values of each channel."""
    coarse = (images.long() // 64 * torch.tensor([16, 4, 1])).sum(3).flatten(1)
    kinds = [(coarse, 64), *((images[..., c].long().flatten(1) // 8, 32) for c in range(3))]
    counts = [
        torch.zeros(len(images), size).scatter_add_(1, kind, torch.ones(kind.shape))
        for kind, size in kinds
    ]
    return torch.cat(counts, 1).double().sqrt()


@pytest.mark.parametrize("strength", [10.0, 1e3, 1e5])
def test_a_linear_probe_on_pixels_does_not_see_shapes(images, strength):
    (x, y), (new, truth) = images
    answers = ridge(shrunk(x), y, shrunk(new), strength)
    assert (answers == truth).double().mean() < 0.3


@pytest.mark.parametrize("strength", [10.0, 1e3, 1e5])
def test_a_colour_histogram_is_at_chance(images, strength):
    (x, y), (new, truth) = images
    features, other = (torch.cat([histogram(part) for part in a.split(1000)]) for a in (x, new))
    accuracy = float((ridge(features, y, other, strength) == truth).double().mean())
    assert abs(accuracy - CHANCE) < 3 * ERROR


def test_two_convolutions_are_not_enough(images):
    (x, y), (new, truth) = images
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 5, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(48 * 16, CLASSES),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    passes = 6
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes * TRAINED // 100)
    masks = torch.zeros(100, 64, 64)
    for _ in range(passes):
        for chosen in torch.randperm(TRAINED).split(100):
            turns = torch.randint(8, (100,))
            batch, _, labels = turned(x[chosen], masks, y[chosen], turns, "shape")
            logits = network(batch.permute(0, 3, 1, 2).float() / 64 - 2)
            nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            falling.step()
    with torch.inference_mode():
        answers = [
            network(part.permute(0, 3, 1, 2).float() / 64 - 2).argmax(1) for part in new.split(500)
        ]
    accuracy = float((torch.cat(answers) == truth).double().mean())
    assert 0.2 < accuracy < 0.8  # it learns, but not enough
