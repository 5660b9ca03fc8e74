"""How alike are all layers of one network? E1: Raghu et al. 2021, figures 1 and B.1.

Every layer of a transformer is much like every other; a CNN falls into stages, whose first and last
are unlike. `fastcka study --experiments E1`. Costs one pass of each network over the images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Comparison, Need, Side
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, TRANSFORMER, Subject, Subjects
from fastcka.report.heatmap import heatmap
from fastcka.result import CKAResult

NUMBERS = ("E1",)
TITLE = "Layers within a network"
FINDING = (
    "ViTs are nearly uniform, with high similarity between low and high layers; ResNets fall into "
    "stages, and their low and high layers are unlike."
)
TRANSFORMERS_ARE_UNIFORM = Claim(
    "E1",
    "the lowest and the highest third of the blocks are more alike in the transformer than in the "
    "CNN: difference of their mean CKA",
    ">=",
    0.1,
)
STAGES_PART = Claim(
    "E1",
    "in the CNN, blocks of one stage are more alike than blocks of neighbouring stages: "
    "difference of their mean CKA",
    ">=",
    0.0,
)
NO_ENDS = "one of them has fewer than three blocks, or one without a CKA"
CLAIMS = (TRANSFORMERS_ARE_UNIFORM, STAGES_PART)


@dataclass(frozen=True)
class Config:
    """Nothing to choose: the layers are those of the paper, where the network has them."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    return [need for one in _shown(subjects) for need in (_all_layers(one), _blocks(one))]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    arrays, layers, ends, errors = {}, {}, {}, {}
    for one in _shown(subjects):
        result = measured[_all_layers(one)]
        arrays[f"cka/{one.name}"], arrays[f"stderr/{one.name}"] = result.cka, result.stderr
        layers[one.name] = list(result.layers_a)
        blocks = measured[_blocks(one)]
        ends[one.name] = low_to_high(blocks.cka)
        errors[one.name] = low_to_high(blocks.stderr)
    verdicts = []
    transformers, cnns = subjects.own(TRANSFORMER), subjects.own(CNN)
    for transformer in transformers:
        for cnn in cnns:
            names = transformer.name, cnn.name
            more = ends[transformer.name] - ends[cnn.name]
            # All are of the same images: errors of means are no more than means of errors.
            stderr = sum(errors[name] for name in names)
            why = "" if np.isfinite(more) else NO_ENDS
            verdicts.append(Verdict(TRANSFORMERS_ARE_UNIFORM, ", ".join(names), more, stderr, why))
    if not verdicts:
        verdicts.append(
            Verdict(TRANSFORMERS_ARE_UNIFORM, "", None, why="needs a transformer and a CNN")
        )
    for cnn in cnns:
        stages = [block.rpartition(".")[0] for block in cnn.blocks]
        blocks = measured[_blocks(cnn)]
        drop, stderr = stage_drop(blocks.cka, stages), None
        if np.isfinite(drop):
            stderr = sum(_in_stages(blocks.stderr, stages))
            why = ""
        else:
            few = len(set(stages)) in (1, len(stages))
            why = "its blocks are in one list, or one a stage" if few else "a block has no CKA"
        verdicts.append(Verdict(STAGES_PART, cnn.name, drop, stderr, why))
    if not cnns:
        verdicts.append(Verdict(STAGES_PART, "", None, why="needs a CNN"))
    facts = {"layers": layers, "low_to_high": ends}
    return Result(arrays, facts, tuple(verdicts))


def plot(result: Result) -> dict:
    """A heat map a network, by its name."""
    return {
        name: heatmap(result.arrays[f"cka/{name}"], {name: layers}, {name: layers})
        for name, layers in result.facts["layers"].items()
    }


def low_to_high(cka: np.ndarray) -> float:
    """Mean CKA between the lowest and the highest third of the layers; of fewer than 3, NaN.

    >>> low_to_high(np.array([[1, 0.5, 0.2], [0.5, 1, 0.5], [0.2, 0.5, 1]]))
    0.2
    """
    third = len(cka) // 3
    return float(cka[:third, -third:].mean()) if third else np.nan


def stage_drop(cka: np.ndarray, stages: Sequence[str]) -> float:
    """Mean CKA of two blocks of one stage, less that of blocks in neighbouring stages.

    >>> cka = np.array([[1, 0.9, 0.3], [0.9, 1, 0.3], [0.3, 0.3, 1]])
    >>> round(stage_drop(cka, ["low", "low", "high"]), 9)
    0.6
    """
    within, next_to = _in_stages(cka, stages)
    return within - next_to


def _in_stages(values: np.ndarray, stages: Sequence[str]) -> tuple[float, float]:
    """Means over pairs of blocks of one stage, and of neighbouring ones; NaN without such pairs."""
    order = list(dict.fromkeys(stages))
    number = np.array([order.index(stage) for stage in stages])
    apart = np.abs(number[:, None] - number)
    within = (apart == 0) & ~np.eye(len(values), dtype=bool)
    if not within.any() or not (apart == 1).any():
        return np.nan, np.nan
    return float(values[within].mean()), float(values[apart == 1].mean())


def _shown(subjects: Subjects) -> list[Subject]:
    return subjects.own(TRANSFORMER, CNN)


def _all_layers(one: Subject) -> Comparison:
    return Comparison(Side(one.name, one.fine), Side(one.name, one.fine))


def _blocks(one: Subject) -> Comparison:
    return Comparison(Side(one.name), Side(one.name))
