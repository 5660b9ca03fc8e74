"""All experiments, in the order of the paper; by number, by name, or all."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

NAMES = (
    "within_model",
    "cross_model",
    "attention_distance",
    "local_heads",
    "receptive_fields",
    "skip_connections",
    "skip_removed",
    "localisation",
    "token_probes",
    "depth_probes",
    "data_share",
    "fine_tuning",
    "mixers",
)
ALL = "all"


def experiments(asked: Iterable[str] = (ALL,)) -> dict[str, ModuleType]:
    """The modules of experiments, by name, in the order of the paper.

    Args:
        asked: numbers as "E1", in either case, names as "within_model", or "all".

    Raises:
        ValueError: there is no such experiment.

    >>> list(experiments(["e1"]))
    ['within_model']
    """
    every = {name: import_module(f"fastcka.experiments.{name}") for name in NAMES}
    wanted = set()
    for word in asked:
        found = [
            name
            for name, module in every.items()
            if word in (ALL, name) or word.upper() in module.NUMBERS
        ]
        if not found:
            numbers = [number for module in every.values() for number in module.NUMBERS]
            near = get_close_matches(word, NAMES, n=2)
            known = " or ".join(near) if near else f"{numbers[0]} to {numbers[-1]}, or {ALL}"
            raise ValueError(
                f"there is no experiment {word!r}: ask for {known}; `fastcka list experiments` has "
                "their numbers and names"
            )
        wanted |= set(found)
    return {name: every[name] for name in NAMES if name in wanted}
