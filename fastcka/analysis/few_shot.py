"""Few-shot probes: k images a class to fit, and others to choose lambda."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastcka.analysis.ridge import LAMBDAS, RidgePath, check_labels

WORKSPACE = 2**25  # numbers of float64 that the probes fitted at once take


class Draw(NamedTuple):
    """Numbers of images, by class and within it in random order."""

    fit: torch.Tensor
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


class FewShot:
    """Probes fitted to some images, each with the lambda that did best on others.

    Of equally good lambdas the largest. Nothing of any other image goes into a probe or its lambda.

    Args:
        features: [..., images, D]; each of the leading axes has a probe, such as one a token.
        labels: [images].
        chosen: which of the images are fitted, and on which lambda is chosen.
        classes, lambdas, dtype: as for `RidgePath.fit`.

    Attributes:
        lam: [...] float64, chosen on the held-out images.
        held_out: [..., lambdas] float64, the accuracy on them.

    Raises: as `RidgePath`.

    Cost: that of `RidgePath`; of the probes some are fitted at a time, so that memory beyond the
    features is some gigabyte, or one probe. The bits depend on which are given together.

    >>> labels = torch.arange(60) % 2
    >>> features = torch.randn(3, 60, 4) + 9 * labels[:, None]  # of three tokens
    >>> probes = FewShot(features, labels, draw(labels, 2, shots=10, held_out=10, seed=0), 2)
    >>> probes.accuracy(features, labels).tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        chosen: Draw,
        classes: int,
        lambdas: Sequence[float] = LAMBDAS,
        dtype: torch.dtype = torch.float64,
    ):
        self._shape = features.shape[:-2]
        fit, held_out = (rows.to(features.device) for rows in chosen)
        images, width = len(fit), features.shape[-1]
        self._at_once = max(1, WORKSPACE // (width * (images + min(images, width) + classes)))
        self._paths, lam, held = [], [], []
        for some in self._some(features):
            path = RidgePath.fit(
                some.index_select(-2, fit), labels[chosen.fit], classes, lambdas, dtype
            )
            found = path.accuracy(some.index_select(-2, held_out), labels[chosen.held_out])
            among = torch.tensor(path.lambdas, dtype=torch.float64, device=found.device)
            best = found == found.amax(-1, keepdim=True)
            self._paths.append(path)
            lam.append(torch.where(best, among, 0.0).amax(-1))
            held.append(found)
        self.lam: torch.Tensor = torch.cat(lam).reshape(self._shape)
        self.held_out: torch.Tensor = torch.cat(held).reshape(*self._shape, -1)

    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Share of other images that each probe gets right, [...] float64."""
        lams = self.lam.reshape(-1).split(self._at_once)
        found = [
            path.accuracy(some, labels, lam)
            for some, path, lam in zip(self._some(features), self._paths, lams, strict=True)
        ]
        return torch.cat(found).reshape(self._shape)

    def _some(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return features.reshape(-1, *features.shape[-2:]).split(self._at_once)
