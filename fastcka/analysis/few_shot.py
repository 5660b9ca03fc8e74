"""Few-shot accuracy: k images a class to fit, others to choose lambda, and a test set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastcka.analysis.ridge import LAMBDAS, RidgePath, check_features, check_labels

Part = tuple[torch.Tensor, torch.Tensor]  # features [..., images, D], labels [images]
WORKSPACE = 2**25  # numbers of float64 that the probes fitted at once take


class Draw(NamedTuple):
    """Numbers of images, by class and within it in random order."""

    fit: torch.Tensor
    held_out: torch.Tensor


class FewShot(NamedTuple):
    """What a probe knows, for each of the leading axes of the features.

    Attributes:
        accuracy: share of the test images, 0 to 1.
        stderr: of it over other test images, √(p(1 - p)/M); other images to fit are not in it.
        lam: chosen on the held-out images.
        held_out: [..., lambdas], the accuracy on them.
    """

    accuracy: torch.Tensor
    stderr: torch.Tensor
    lam: torch.Tensor
    held_out: torch.Tensor


def draw(labels: torch.Tensor, classes: int, shots: int, held_out: int, seed: int) -> Draw:
    """Choose images of each class to fit a probe to, and others to choose its lambda on.

    A function of the labels and the seed alone, for each class by itself: the same in every process
    and on every device. With more shots the same images and further ones are fitted, and the
    held-out ones stay.

    Args:
        labels: [N], integers from 0 to classes - 1.
        classes: how many there are.
        shots, held_out: images a class; 1 or more.
        seed: from 0 on.

    Returns:
        `Draw`, on the CPU, class by class.

    Raises:
        TypeError, ValueError: an argument is none of these, or a class has too few images.

    >>> labels = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0])
    >>> chosen = draw(labels, 2, shots=2, held_out=1, seed=0)
    >>> labels[chosen.fit].tolist(), labels[chosen.held_out].tolist()
    ([0, 0, 1, 1], [0, 1])
    """
    check_labels("labels", labels, classes)
    if shots < 1 or held_out < 1:
        raise ValueError(
            f"`shots` and `held_out` must be 1, 2, 3, …, but are {shots} and {held_out}"
        )
    parts = []
    for label in range(classes):
        members = (labels.cpu() == label).nonzero()[:, 0]
        if len(members) < shots + held_out:
            raise ValueError(
                f"`labels` must have {shots} images of each class to fit and {held_out} to hold "
                f"out, but has {len(members)} of class {label}; ask for fewer"
            )
        mixed = np.random.SeedSequence(seed, spawn_key=(label,)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        members = members[torch.randperm(len(members), generator=generator)]
        parts.append((members[:shots], members[-held_out:]))
    return Draw(*(torch.cat(part) for part in zip(*parts, strict=True)))


def few_shot(
    fit: Part,
    held_out: Part,
    test: Part,
    classes: int,
    lambdas: Sequence[float] = LAMBDAS,
    dtype: torch.dtype = torch.float64,
) -> FewShot:
    """Fit a probe, choose lambda on held-out images, and score once on the test images.

    Of equally good lambdas the largest. Nothing of the test images goes into the probe or lambda.

    Args:
        fit, held_out, test: features [..., images, D] and labels [images] each, with the same
            leading axes: a probe each, such as one a token.
        classes, lambdas, dtype: as for `RidgePath.fit`.

    Returns:
        `FewShot` of float64 tensors [...].

    Raises: as `RidgePath`.

    Cost: that of `RidgePath`; of the probes some are fitted at a time, so that memory beyond the
    features is some gigabyte, or one probe. The bits depend on which are given together.

    >>> labels = torch.arange(60) % 2
    >>> features = torch.randn(3, 60, 4) + 9 * labels[:, None]  # of three tokens
    >>> parts = [(features[:, rows], labels[rows]) for rows in torch.arange(60).split(20)]
    >>> few_shot(*parts, classes=2).accuracy.tolist()
    [1.0, 1.0, 1.0]
    """
    (x, y), (x_held, y_held), (x_test, y_test) = fit, held_out, test
    for name, features in (("fit", x), ("held_out", x_held), ("test", x_test)):
        check_features(name, features)
        if features.shape[:-2] != x.shape[:-2] or features.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"`{name}` must have the probes and features of `fit`, {list(x.shape)}, but is "
                f"{list(features.shape)}"
            )
    leading, images, width = x.shape[:-2], x.shape[-2], x.shape[-1]
    x, x_held, x_test = (part.reshape(-1, *part.shape[-2:]) for part in (x, x_held, x_test))
    at_once = max(1, WORKSPACE // (width * (images + min(images, width)) + classes * width))
    accuracy, lam, held = [], [], []
    for probes in torch.arange(len(x)).split(at_once):
        some = slice(int(probes[0]), int(probes[-1]) + 1)
        path = RidgePath.fit(x[some], y, classes, lambdas, dtype)
        held.append(path.accuracy(x_held[some], y_held))
        among = torch.tensor(path.lambdas, dtype=torch.float64, device=x.device)
        best = held[-1] == held[-1].amax(-1, keepdim=True)
        lam.append(torch.where(best, among, 0.0).amax(-1))
        accuracy.append(path.accuracy(x_test[some], y_test, lam[-1]))
    p = torch.cat(accuracy).reshape(leading)
    stderr = (p * (1 - p) / x_test.shape[-2]).sqrt()
    return FewShot(
        p, stderr, torch.cat(lam).reshape(leading), torch.cat(held).reshape(*leading, -1)
    )


def few_shot_draws(
    pool: Part,
    test: Part,
    classes: int,
    shots: int,
    held_out: int,
    seeds: Sequence[int],
    lambdas: Sequence[float] = LAMBDAS,
    dtype: torch.dtype = torch.float64,
) -> FewShot:
    """`few_shot` on several draws of images from a pool; their spread is the error of fitting.

    Args:
        pool: features [..., N, D] and labels [N] of training images; none of them a test image.
        test, classes, lambdas, dtype: as for `few_shot`. shots, held_out, seeds: as for `draw`.

    Returns:
        `FewShot` of tensors [seeds, ...].

    Raises: as `draw` and `RidgePath`.

    >>> labels = torch.arange(80) % 2
    >>> features = torch.randn(80, 4) + 9 * labels[:, None]
    >>> found = few_shot_draws((features, labels), (features, labels), 2, 10, 5, seeds=range(3))
    >>> found.accuracy.tolist()
    [1.0, 1.0, 1.0]
    """
    features, labels = pool
    check_labels("pool", labels, classes, features.shape[-2])
    found = []
    for seed in seeds:
        chosen = draw(labels, classes, shots, held_out, seed)
        parts = []
        for rows in chosen:
            rows = rows.to(features.device)
            parts.append((features.index_select(-2, rows), labels.to(features.device)[rows]))
        found.append(few_shot(*parts, test, classes, lambdas, dtype))
    if not found:
        raise ValueError("`seeds` is empty: give one or more")
    return FewShot(*(torch.stack(values) for values in zip(*found, strict=True)))
