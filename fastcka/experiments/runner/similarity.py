"""The pass that all experiments on CKA and on single images share."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastcka.analysis.localisation import PixelPatches
from fastcka.checkpoint import Checkpoint
from fastcka.distributed import Share
from fastcka.experiments.runner.needs import Comparison, Side, Watch
from fastcka.experiments.runner.sample import Sample, view
from fastcka.experiments.runner.subjects import Subjects
from fastcka.measurement import measure
from fastcka.observations import Observations
from fastcka.participant import Participant
from fastcka.result import CKAResult
from fastcka.streaming import pairs_of


@dataclass(frozen=True)
class Means:
    """What an observer saw, over all images.

    Attributes:
        mean, stderr: by the name of the value; the error over images.
        count: of images.
    """

    mean: Mapping[str, np.ndarray]
    stderr: Mapping[str, np.ndarray]
    count: int


def run(
    needs: Sequence[Comparison | Watch],
    subjects: Subjects,
    sample: Sample,
    *,
    device: str | None,
    autocast: torch.dtype | None,
    progress: bool | str,
    state: str | os.PathLike,
) -> dict[Comparison | Watch, CKAResult | Means]:
    """Measure all of them in one pass; each network runs once a batch.

    An interrupted pass leaves `state`, and goes on from there.
    """
    comparisons = [need for need in needs if isinstance(need, Comparison)]
    watches = [need for need in needs if isinstance(need, Watch)]
    labels = _labels(comparisons, watches)
    involved = list(dict.fromkeys(side.subject for side in labels))
    # A function of each network, the same for all of its sides: they run together.
    views = {name: view(name) for name in involved}
    participants = []
    for side, label in labels.items():
        module, layers = subjects[side.subject].network.module, list(side.layers)
        if side.pixels is not None:
            module = PixelPatches(side.pixels)
            layers = module.layers
        how = {"prepare": views[side.subject], "autocast": autocast, "device": device}
        participants.append(Participant(label, module, layers, name=side.subject, **how))
    first = {side.subject: label for side, label in reversed(labels.items()) if not side.pixels}
    observers: dict[str, dict] = {}
    for watch in watches:
        module = subjects[watch.subject].network.module
        observers.setdefault(first[watch.subject], {})[watch.what] = watch.make(module)
    observations = Observations(observers)
    pairs = [(labels[need.a], labels[need.b]) for need in comparisons]
    # A network that is watched alone takes part with what its blocks are like, for nothing more.
    alone = [(label, label) for label in first.values() if not any(label in pair for pair in pairs)]
    results = measure(
        participants,
        sample.batches([subjects[name] for name in involved], sample.count),
        n=sample.n,
        passes=1,
        progress=progress,
        many=True,
        checkpoint=Checkpoint(state, True, 300),
        share=Share(),
        pairs=pairs_of(list(labels.values()), pairs + alone),
        observations=observations,
    )
    found: dict[Comparison | Watch, CKAResult | Means] = {}
    for need, (a, b) in zip(comparisons, pairs, strict=True):
        found[need] = results[a, b] if (a, b) in results else results[b, a].transposed()
    for watch in watches:
        at = first[watch.subject], watch.what
        mean, stderr = observations.mean(*at), observations.stderr(*at)
        found[watch] = Means(mean, stderr, observations.count)
    return found


def _labels(comparisons: Sequence[Comparison], watches: Sequence[Watch]) -> dict[Side, str]:
    """A name for every side: that of its network, with a number where it has several."""
    sides = [side for need in comparisons for side in (need.a, need.b)]
    compared = {side.subject for side in sides if not side.pixels}
    sides += [Side(watch.subject) for watch in watches if watch.subject not in compared]
    labels, count = {}, {}
    for side in dict.fromkeys(sides):
        number = count[side.subject] = count.get(side.subject, 0) + 1
        labels[side] = side.subject if number == 1 else f"{side.subject} ({number})"
    return labels
