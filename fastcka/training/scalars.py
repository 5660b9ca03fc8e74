"""The course of a training, for TensorBoard where that is installed."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scalars(folder: Path, step: int) -> Iterator[Callable[[float, int], None]]:
    """Writes the loss of steps, from `step` on: what is known of later ones counts no more."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda loss, step: None
        return
    with SummaryWriter(str(folder), purge_step=step) as writer:
        yield lambda loss, step: writer.add_scalar("loss", loss, step)


def beside(weights: Path) -> Path:
    """Where those of trained weights are kept."""
    return weights.with_suffix(".tensorboard")


def keep(folder: Path, weights: Path) -> None:
    """Puts them beside the weights that came of it."""
    if folder.is_dir():
        weights.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside(weights), ignore_errors=True)  # of older weights of this name
        shutil.move(folder, beside(weights))
