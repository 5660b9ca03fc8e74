"""Trains a network after a recipe: stopped at any time, it goes on to the same weights."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import nn

from fastcka import array_file
from fastcka.cache import alone
from fastcka.checkpoint import difference
from fastcka.data.cues import Cues
from fastcka.data.cues.philox import words
from fastcka.data.order import BatchOrder
from fastcka.distributed import Share
from fastcka.interrupts import Interrupts
from fastcka.models.loading import load
from fastcka.training.evaluation import evaluate
from fastcka.training.pool import SEED, Pool, pool
from fastcka.training.recipe import Recipe
from fastcka.training.scalars import keep, scalars
from fastcka.training.supervised import Supervised, loss_of, turned
from fastcka.training.weights_file import write_weights
from fastcka.warning import CKAWarning

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
        # What the bits depend on beside the recipe.
        self.place = {
            "threads": torch.get_num_threads(),
            "processes": share.ranks,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
        }
        self.began = self.place
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
        held = {"step": self.step, "recipe": self.recipe.described(), "began": self.began}
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
        self.began = held.get("began", self.place)  # older states do not tell
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

    The loss is kept beside the weights, for TensorBoard where that is installed.

    Args:
        recipe: what is trained on what.
        path: of the weights.
        folder: for the training images, and for the state of a training that is not finished.
        start: weights to start from, where the recipe says so.
        workers: processes that draw the images, if they are not there yet; 0 draws in this one.
        save_every: seconds between two states.

    Raises:
        ValueError: no such network, a damaged state, or another process is at the same training.

    Returns:
        What is known of the network: recipe, accuracy on new images, and how it was made.
    """
    check_network(recipe.model)
    images_of(recipe)  # before anything is made: they are checked
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = folder / f".training-{recipe.key}.lock"
        share.from_first(lambda: stack.enter_context(alone(lock, _refuse)))
        hidden = not progress or share.rank > 0
        return _made(recipe, path, folder, start, workers, device, share, save_every, hidden)


def check_network(name: str) -> None:
    """Refuses what is none of the small networks."""
    from fastcka.models.small import NETWORKS

    if name not in NETWORKS:
        raise ValueError(
            f"`model` must be one of fastcka's small networks, such as {next(iter(NETWORKS))!r}, "
            f"but is {name!r}; `fastcka list models 'fastcka_*'` has them"
        )


def _refuse(other: str) -> None:
    raise ValueError(
        f"this training runs already, in {other}: wait for it, or stop it and give the same "
        "command, which goes on"
    ) from None


def _made(
    recipe: Recipe,
    path: Path,
    folder: Path,
    start: Path | None,
    workers: int,
    device: str,
    share: Share,
    save_every: float,
    hidden: bool,
) -> dict:
    """What `train` returns, of a training that no other process is at."""
    from tqdm import tqdm

    images = images_of(recipe)
    with tqdm(
        total=recipe.pool, desc="drawing images", unit="image", disable=hidden or None, delay=1
    ) as bar:
        share.from_first(lambda: pool(images, folder, workers, bar.update) and None)
    training = Training(
        recipe, pool(images, folder, workers), start=start, device=device, share=share
    )
    unfinished = folder / f"training-{recipe.key}.safetensors"
    course = folder / f"training-{recipe.key}"
    if share.rank == 0:
        for left in folder.glob(f".{unfinished.name}.*"):  # killed while it was written
            left.unlink(missing_ok=True)
    if unfinished.exists():
        _resume(training, unfinished)
    started, saved, before = monotonic(), monotonic(), training.step
    with (
        Interrupts() as interrupts,
        nullcontext(_untold) if share.rank else scalars(course, training.step) as told,
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
                    told(float(loss), training.step)
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
        **share.from_first(
            lambda: evaluate(
                network, recipe.label, training.device,
                folder=folder, workers=workers, hidden=hidden,
            )
        ),
        "images_per_second": round((training.step - before) * recipe.batch_size / seconds),
        **training.place,
    }  # fmt: skip
    if share.rank == 0:
        keep(course, path)
        write_weights(path, network, known)
        unfinished.unlink(missing_ok=True)
    return known


def _untold(loss: float, step: int) -> None:
    """Of a process that is not the first."""


def _resume(training: Training, path: Path) -> None:
    try:
        with array_file.understood(path):
            training.load_state(array_file.read(path, STATE)[0])
    except ValueError as error:
        raise ValueError(f"{error}; remove it to begin anew") from None
    if differing := difference(training.place, training.began):
        name, now, before = differing
        warnings.warn(
            f"the training goes on with {name} {now} after {training.step} steps, and began with "
            f"{before}: the last bits of the weights will differ from those of a training "
            "without a break",
            CKAWarning,
            stacklevel=2,
        )


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
