"""Which needs are measured together, and about how long that takes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fastcka.capture.modules import evaluating
from fastcka.experiments.runner.needs import Comparison, Field, Need, Probe
from fastcka.experiments.runner.probing import Shots
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.subjects import Subject, Subjects

TIMED = 16  # images of a network that is timed
BACKWARD = 3  # a forward and a backward pass, in forward passes
COTANGENTS = 16
GRAM = 0.5  # what is computed beside a forward pass, in forward passes


@dataclass(frozen=True)
class Part:
    """Needs that the same passes serve."""

    title: str
    needs: tuple[Need, ...]


def parts(needs: Iterable[Need]) -> list[Part]:
    """One for all CKA and all that is seen beside it, one a network for fields, one for probes.

    >>> from fastcka.experiments.runner.needs import Side
    >>> [part.title for part in parts([Field("vit", ()), Comparison(Side("vit"), Side("cnn"))])]
    ['CKA and single images', 'receptive fields of vit']
    """
    groups: dict[tuple[int, str], list[Need]] = {}
    for need in dict.fromkeys(needs):
        if isinstance(need, Field):
            key = (1, f"receptive fields of {need.subject}")
        elif isinstance(need, Probe):
            key = (2, f"probes of {need.subject}")
        else:
            key = (0, "CKA and single images")
        groups.setdefault(key, []).append(need)
    order = sorted(groups, key=lambda key: key[0])  # within a kind as they came
    return [Part(title, tuple(groups[rank, title])) for rank, title in order]


def involved(needs: Iterable[Need]) -> list[str]:
    """The networks that needs are about, each once."""
    names = []
    for need in needs:
        both = isinstance(need, Comparison)
        names += [need.a.subject, need.b.subject] if both else [need.subject]
    return list(dict.fromkeys(names))


def seconds(
    part: Part, pace: Mapping[str, float], sample: Sample, shots: Shots, images: int, classes: int
) -> float:
    """About how long a part takes.

    Args:
        pace: seconds of a forward pass of an image, by network.
        images, classes: how many there are.
    """
    of = sum(pace[name] for name in involved(part.needs))
    first = part.needs[0]
    if isinstance(first, Field):
        layers = sum(len(need.layers) for need in part.needs)
        return of * sample.fields * COTANGENTS * (1 + (BACKWARD - 1) * layers / 2)
    if isinstance(first, Probe):
        fitted = classes * (shots.fit + shots.held_out) * shots.draws
        return of * (fitted + min(sample.tests, images))
    return of * min(sample.count or images, images) * (1 + GRAM)


def pace(subjects: Subjects, names: Sequence[str], device: str | None) -> dict[str, float]:
    """Seconds of a forward pass of an image, by network: of a few, timed now."""
    return {name: _timed(subjects[name], device) for name in names}


def _timed(subject: Subject, device: str | None) -> float:
    module = subject.network.module
    home = next(module.parameters()).device
    x = torch.zeros(TIMED, *subject.network.data_config["input_size"], device=device or home)
    try:
        module.to(x.device)
        with evaluating(module), torch.no_grad():
            module(x[:2])  # the first call sets up what later ones find
            started = time.perf_counter()
            module(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            return (time.perf_counter() - started) / TIMED
    finally:
        module.to(home)
