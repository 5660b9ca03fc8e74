"""Each block of a network with the same block of its variant: for less data, for fine-tuning."""

from collections.abc import Mapping

import numpy as np

from fastcka.experiments.runner.needs import Comparison, Need, Side
from fastcka.experiments.runner.subjects import Subject, Subjects
from fastcka.result import CKAResult

OTHER_BLOCKS = "it has other blocks than the network that it is a variant of"


def variants(subjects: Subjects, kind: str) -> list[Subject]:
    """Those of a kind that have as many blocks as the network that they are variants of."""
    return [
        one
        for one in subjects.variants(kind)
        if len(one.blocks) == len(subjects[one.variant.of].blocks)
    ]


def blocks_alike(one: Subject) -> Comparison:
    """Of a variant with the network that it is one of."""
    return Comparison(Side(one.variant.of), Side(one.name))


def same_block(one: Subject, measured: Mapping[Need, CKAResult]) -> tuple[np.ndarray, np.ndarray]:
    """CKA of every block with its like, and the standard errors."""
    result = measured[blocks_alike(one)]
    return result.cka.diagonal().copy(), result.stderr.diagonal().copy()
