"""Trains a network after a recipe: stopped at any time, it goes on to the same weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import nn

from fastcka import array_file
from fastcka.data.cues import Cues
from fastcka.data.cues.philox import words
from fastcka.data.order import BatchOrder
from fastcka.distributed import Share
from fastcka.interrupts import Interrupts
from fastcka.models.loading import load
from fastcka.training.evaluation import evaluate
from fastcka.training.pool import SEED, Pool, pool
from fastcka.training.recipe import Recipe
from fastcka.training.supervised import Supervised, loss_of, turned
from fastcka.training.weights_file import write_weights

STATE = "training"
ALONE = Share()


def images_of(recipe: Recipe) -> Cues:
    """The images of which a recipe takes some."""
    return Cues(recipe.pool, seed=SEED, label=recipe.label, correlation=recipe.correlation)


class Training:
    """The training of one network, step by step.

    Args:
        recipe: what is trained on what.
        images: the training images.
        start: a file of weights to start from, where the recipe says so.
        device: where it runs.
        share: of several processes, each of which takes a part of every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: Pool,
        *,
        start: Path | None = None,
        device: str = "cpu",
        share: Share = ALONE,
    ):
        self.recipe, self.device, self.step = recipe, torch.device(device), 0
        if recipe.batch_size % share.ranks:
            raise ValueError(
                f"a batch of {recipe.batch_size} images cannot be shared by {share.ranks} processes"
            )
        self._share = share
        loaded = load(f"{recipe.model}@{start}" if start else recipe.model, seed=recipe.seed)
        self.network = loaded.module
        self._mean = self._constant(loaded.data_config["mean"])
        self._deviation = self._constant(loaded.data_config["std"])
        kind = recipe.model.split("_")[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)
            self._module = Supervised(self.network, kind, images.images.shape[1])
        self._module.to(self.device).train()
        self.optimizers = _optimizers(self._module, recipe)
        self._run = self._module
        if share.ranks > 1:
            self._run = nn.parallel.DistributedDataParallel(self._module)
        count = round(recipe.fraction * recipe.pool)
        column = {"shape": 0, "texture": 1, "background": 2}[recipe.label]
        self._images, self._masks = images.images[:count], images.masks[:count]
        self._labels = torch.from_numpy(images.cues[:count, column].copy())
        if self.device.type == "cuda":  # all at once: it would wait for every batch
            self._images, self._masks = (
                torch.from_numpy(array.copy()).to(self.device)
                for array in (self._images, self._masks)
            )
            self._labels = self._labels.to(self.device)
        self._order = BatchOrder(count, recipe.batch_size, recipe.seed)

    def steps(self) -> Iterator[torch.Tensor]:
        """Makes the steps that are left; the loss of each, where it was computed."""
        whole = self._order.length // self.recipe.batch_size  # an incomplete batch is left out
        while self.step < self.recipe.steps:
            self._order.epoch, first = divmod(self.step, whole)
            for number, chosen in enumerate(self._order):
                if first <= number < whole and self.step < self.recipe.steps:
                    loss = self._train(chosen)
                    self.step += 1
                    yield loss

    def _train(self, chosen: list[int]) -> torch.Tensor:
        size = self.recipe.batch_size
        drawn = words(self.recipe.seed, np.arange(self.step * size, (self.step + 1) * size), 1)
        mine = slice(self._share.rank, None, self._share.ranks)
        turns = torch.from_numpy((drawn[:, 0] & np.uint64(7)).astype(np.int64))[mine]
        images, masks, labels = self._batch(chosen[mine])
        if self.recipe.turned:
            images, masks, labels = turned(
                images, masks, labels, turns.to(self.device), self.recipe.label
            )
        # Channels last in memory, as they were drawn: convolutions are faster so.
        images = ((images.float() / 255 - self._mean) / self._deviation).permute(0, 3, 1, 2)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * _height(self.step, self.recipe)
            optimizer.zero_grad(set_to_none=True)
        logits, cells = self._run(images)
        loss = loss_of(logits, cells, labels, masks, self.recipe.mask)
        loss.backward()
        nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _batch(self, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, masks, labels = self._images[chosen], self._masks[chosen], self._labels[chosen]
        if isinstance(images, np.ndarray):
            images, masks = torch.from_numpy(images), torch.from_numpy(masks)
        bits = torch.arange(7, -1, -1, device=self.device)
        masks = (masks.to(self.device)[..., None] >> bits & 1).flatten(2).float()
        return images.to(self.device), masks, labels

    def _constant(self, values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def state(self) -> dict:
        """All that the next steps depend on, but for the images: arrays and numbers by name."""
        held = {"step": self.step, "recipe": self.recipe.described()}
        for name, value in self._module.state_dict().items():
            held[f"module.{name}"] = value.cpu().numpy()
        for k, optimizer in enumerate(self.optimizers):
            for i, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    held[f"optimizer.{k}.{i}.{name}"] = np.atleast_1d(value.cpu().numpy())
        return held

    def load_state(self, held: Mapping) -> None:
        """Takes a state that `state` has given."""
        self.step = held["step"]
        weights = {
            name: torch.from_numpy(held[f"module.{name}"]).reshape(value.shape)
            for name, value in self._module.state_dict().items()
        }
        self._module.load_state_dict(weights)
        for k, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for i, parameter in enumerate(parameters):
                prefix = f"optimizer.{k}.{i}."
                values = {
                    name.removeprefix(prefix): torch.from_numpy(value).float()
                    for name, value in held.items()
                    if name.startswith(prefix)
                }
                state["state"][i] = {
                    name: value.reshape(() if name == "step" else parameter.shape)
                    for name, value in values.items()
                }
            optimizer.load_state_dict(state)


def train(
    recipe: Recipe,
    path: Path,
    *,
    folder: Path,
    start: Path | None = None,
    workers: int = 0,
    device: str = "cpu",
    share: Share = ALONE,
    save_every: float = 60.0,
    progress: bool = True,
) -> dict:
    """Trains a network and writes its weights, in half precision; goes on where it was stopped.

    Args:
        recipe: what is trained on what.
        path: of the weights.
        folder: for the training images, and for the state of a training that is not finished.
        start: weights to start from, where the recipe says so.
        workers: processes that draw the images, if they are not there yet; 0 draws in this one.
        save_every: seconds between two states.

    Returns:
        What is known of the network: recipe, accuracy on new images, and how it was made.
    """
    from tqdm import tqdm

    from fastcka.models.small import NETWORKS

    if recipe.model not in NETWORKS:
        raise ValueError(
            f"`model` must be one of fastcka's small networks, such as {next(iter(NETWORKS))!r}, "
            f"but is {recipe.model!r}; `fastcka list models 'fastcka_*'` has them"
        )
    images = images_of(recipe)
    hidden = not progress or share.rank > 0
    with tqdm(
        total=recipe.pool, desc="drawing images", unit="image", disable=hidden or None
    ) as bar:
        drawn = share.from_first(lambda: pool(images, folder, workers, bar.update) and None)
        drawn = pool(images, folder, workers)
    training = Training(recipe, drawn, start=start, device=device, share=share)
    unfinished = folder / f"training-{recipe.key}.safetensors"
    if unfinished.exists():
        try:
            with array_file.understood(unfinished):
                training.load_state(array_file.read(unfinished, STATE)[0])
        except ValueError as error:
            raise ValueError(f"{error}; remove it to begin anew") from None
    started, saved, before = monotonic(), monotonic(), training.step
    with (
        Interrupts() as interrupts,
        _scalars(folder / f"training-{recipe.key}", share) as scalars,
        tqdm(
            total=recipe.steps, initial=training.step, desc=path.name, unit="step",
            disable=hidden or None, mininterval=1.0,
        ) as bar,
    ):  # fmt: skip
        try:
            steps = training.steps()
            while training.step < recipe.steps:
                with interrupts.after():
                    loss = next(steps)
                bar.update()
                if training.step % 50 == 0:
                    scalars(float(loss), training.step)
                    bar.set_postfix(loss=f"{float(loss):.3f}")
                if monotonic() - saved > save_every:
                    with interrupts.after():
                        _save(training, unfinished, share)
                    saved = monotonic()
        except (KeyboardInterrupt, SystemExit):  # after an error a step may be half made
            _save(training, unfinished, share)
            raise
        with interrupts.after():  # what follows can be stopped as well
            _save(training, unfinished, share)
    seconds = monotonic() - started
    network = training.network.half().float().eval()  # as they are written
    known = {
        "recipe": recipe.described(),
        **evaluate(network, recipe.label, training.device),
        "images_per_second": round((training.step - before) * recipe.batch_size / seconds),
        "threads": torch.get_num_threads(),
        "processes": share.ranks,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
    }
    if share.rank == 0:
        write_weights(path, network, known)
        unfinished.unlink(missing_ok=True)
    return known


def _save(training: Training, path: Path, share: Share) -> None:
    if share.rank == 0:
        array_file.write(path, STATE, [training.state()])


def _height(step: int, recipe: Recipe) -> float:
    """Of the learning rate, as a part of its greatest."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    return rise * 0.5 * (1 + float(np.cos(np.pi * step / recipe.steps)))


def _optimizers(module: Supervised, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within blocks, AdamW for all else."""
    inner = {
        id(p)
        for name, p in module.network.named_parameters()
        if recipe.muon and p.ndim == 2 and name.startswith("blocks.")
    }
    matrices = [p for p in module.parameters() if id(p) in inner]
    others = [p for p in module.parameters() if id(p) not in inner]
    optimizers = [torch.optim.AdamW(others, recipe.learning_rate, weight_decay=recipe.weight_decay)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, recipe.muon, weight_decay=recipe.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


@contextmanager
def _scalars(folder: Path, share: Share) -> Iterator:
    """Writes the loss for TensorBoard, where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        SummaryWriter = None
    if SummaryWriter is None or share.rank:
        yield lambda loss, step: None
        return
    with SummaryWriter(str(folder)) as writer:
        yield lambda loss, step: writer.add_scalar("loss", loss, step)
