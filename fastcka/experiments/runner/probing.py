"""The passes of few-shot probes: over the images they are fitted to, and over those they meet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from fastcka.analysis.few_shot import Draw, FewShot, draw
from fastcka.analysis.observer import Observer
from fastcka.data import ImageBatches
from fastcka.experiments.runner.needs import NotApplicable, Probe
from fastcka.experiments.runner.sample import Sample, view
from fastcka.experiments.runner.subjects import Subject
from fastcka.participant import Entered, Participant

Key = tuple[str, str]  # what is observed, and the layer


@dataclass(frozen=True)
class Accuracies:
    """Of probes, the mean over their draws of images to fit.

    Attributes:
        accuracy: share of the test images, by layer; [tokens] where each token has a probe.
        stderr: over other test images and other draws together.
        classes, tests: how many; a guess is right in 1/classes.
    """

    accuracy: Mapping[str, np.ndarray]
    stderr: Mapping[str, np.ndarray]
    classes: int
    tests: int


@dataclass(frozen=True)
class Shots:
    """Images a class to fit probes, and to choose their lambda; how often these are drawn."""

    fit: int = 10
    held_out: int = 10
    draws: int = 3


@dataclass(frozen=True)
class _Chosen:
    """Which images are for what: the numbers of those in the pool, and draws by place in it.

    Attributes:
        meaning: from the label of a test image to that of the pool; -1 where there is none.
    """

    pool: ImageBatches
    numbers: torch.Tensor
    labels: torch.Tensor
    draws: list[Draw]
    tests: ImageBatches
    meaning: torch.Tensor
    classes: int


def run(
    needs: Sequence[Probe],
    subject: Subject,
    sample: Sample,
    shots: Shots,
    *,
    device: str | None,
    autocast: torch.dtype | None,
    progress: bool,
) -> dict[Probe, Accuracies]:
    """Fit all probes of one network, then test them; each image runs through it once.

    Raises:
        NotApplicable: the images have no labels, or a class has too few of them.
    """
    chosen = _choose(subject, sample, shots)
    observers = {need.what: need.make(subject.network.module) for need in needs}

    def features(images: ImageBatches, bar: str):
        where = {"device": device, "autocast": autocast, "progress": progress and bar}
        return _features(subject, observers, images, **where)

    probes = _fitted(features(chosen.pool, f"fitting probes: {subject.name}"), chosen)
    right, tests = dict.fromkeys(probes, 0), 0
    for _, labels, values in features(chosen.tests, f"testing probes: {subject.name}"):
        labels = chosen.meaning[labels]
        tests += len(labels)
        for key, x in values.items():
            found = torch.stack([one.accuracy(x, labels) for one in probes[key]]).cpu()
            right[key] = right[key] + found * len(labels)
    found = {}
    for need in needs:
        of = {
            layer: _mean(hits, tests) for (what, layer), hits in right.items() if what == need.what
        }
        accuracy, stderr = ({layer: pair[i] for layer, pair in of.items()} for i in (0, 1))
        found[need] = Accuracies(accuracy, stderr, chosen.classes, tests)
    return found


def _mean(hits: torch.Tensor, tests: int) -> tuple[np.ndarray, np.ndarray]:
    """Over the draws, with its error: over test images, and over draws where there are several."""
    each = (hits / tests).numpy()
    mean = each.mean(0)
    among = each.var(0, ddof=1) / len(each) if len(each) > 1 else 0.0
    return mean, np.sqrt(mean * (1 - mean) / tests + among)


def _choose(subject: Subject, sample: Sample, shots: Shots) -> _Chosen:
    everything = sample.batches([subject], None)
    apart = sample.probe_root is not None
    source = sample.probes([subject], None) if apart else everything
    if source.labels is None or everything.labels is None:
        raise NotApplicable("probes need labelled images: put those of a class in a folder")
    labels = torch.tensor(source.labels)
    known = (labels >= 0).nonzero()[:, 0]
    classes = int(labels.max()) + 1
    seeds = range(sample.seed, sample.seed + shots.draws)
    try:
        draws = [draw(labels[known], classes, shots.fit, shots.held_out, seed) for seed in seeds]
    except ValueError as error:
        raise NotApplicable(f"{source.root}: {error}") from error
    draws = [Draw(*(known[part] for part in one)) for one in draws]
    meaning = _meaning(everything.classes, source.classes, everything.labels)
    used = torch.cat([part for one in draws for part in one]).unique()
    place = torch.full((len(labels),), -1)
    place[used] = torch.arange(len(used))
    there = torch.tensor(everything.labels)
    rest = (there >= 0) & (meaning[there] >= 0)
    if not apart:
        rest[used] = False
    if not rest.any():
        raise NotApplicable(
            f"{sample.root}: probes are fitted to all of its labelled images, and none are left to "
            "test them on; ask for fewer shots, or give the images to fit to apart"
        )
    only = rest.nonzero()[:, 0].tolist()
    pool = (sample.probes if apart else sample.batches)([subject], None, only=used.tolist())
    return _Chosen(
        pool,
        used,
        labels[used],
        [Draw(*(place[part] for part in one)) for one in draws],
        sample.batches([subject], sample.tests, only=only),
        meaning,
        classes,
    )


def _meaning(here: Sequence[str], there: Sequence[str], labels: Sequence[int]) -> torch.Tensor:
    """From each class of one set of images to that of another: by name, or where a set has no names
    by number; the last entry, of unknown ones, is -1.

    >>> _meaning(["cat", "dog"], ["ant", "cat"], [0, 1])
    tensor([ 1, -1, -1])
    """
    if here and there:
        known = [list(there).index(name) if name in there else -1 for name in here]
    else:
        known = list(range(max(labels) + 1))
    return torch.tensor([*known, -1])


def _fitted(
    seen: Iterator[tuple[torch.Tensor, torch.Tensor, dict[Key, torch.Tensor]]], chosen: _Chosen
) -> dict[Key, list[FewShot]]:
    """Of each layer its probes, for every draw."""
    parts: dict[Key, list[torch.Tensor]] = {}
    files = []
    for index, _, values in seen:
        files.append(index)
        for key, x in values.items():
            parts.setdefault(key, []).append(x)
    came, order = torch.cat(files).sort()
    place = torch.searchsorted(chosen.numbers, came)  # in the pool, of which some may be broken
    row = torch.full((len(chosen.numbers),), -1)
    row[place] = torch.arange(len(came))
    draws = [Draw(*(_without_missing(row[part]) for part in one)) for one in chosen.draws]
    probes = {}
    for key in list(parts):
        x = torch.cat(parts.pop(key), -2)
        x = x.index_select(-2, order.to(x.device))
        probes[key] = [FewShot(x, chosen.labels[place], one, chosen.classes) for one in draws]
    return probes


def _without_missing(rows: torch.Tensor) -> torch.Tensor:
    if not (rows >= 0).any():
        raise NotApplicable("none of the images that probes need can be read")
    return rows[rows >= 0]


def _features(
    subject: Subject,
    observers: Mapping[str, Observer],
    images: ImageBatches,
    *,
    device: str | None,
    autocast: torch.dtype | None,
    progress: bool | str,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[Key, torch.Tensor]]]:
    """Numbers of the images, their labels, and the features [..., images, d] of each batch."""
    participant = Participant(
        subject.name,
        subject.network.module,
        list(subject.blocks[-1:]),
        prepare=view(subject.name),
        autocast=autocast,
        device=device,
    )
    bar = tqdm(images, desc=progress or None, unit="batch", disable=None if progress else True)
    with participant.ready():
        for number, batch in enumerate(bar):
            inputs = participant.inputs(batch)
            module = participant.capture.model
            watching = {what: one.watching(module, inputs.n) for what, one in observers.items()}
            entered = {what: Entered(one) for what, one in watching.items()}
            participant.run(inputs, number, lambda layer, x: None, entered.values())
            features = {
                (what, layer): x.float() if x.ndim == 2 else x.float().movedim(1, 0)
                for what, one in entered.items()
                for layer, x in one.value.items()
            }
            yield batch["index"], batch["label"], features
