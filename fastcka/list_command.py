"""What there is to choose from: `fastcka list`."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from fastcka.capture import Capture
from fastcka.capture.matching import find
from fastcka.capture.modules import evaluating, named
from fastcka.capture.presets import PRESETS
from fastcka.training import ARMS
from fastcka.training.recipe import unlike_plain
from fastcka.training.weights_file import known_of

# Enough that their number is no other size of an activation.
EXAMPLES = 5


def models(pattern: str = "*") -> str:
    """The models that timm has, a line each."""
    from fastcka.models import known

    return "\n".join(known(pattern))


def experiments() -> str:
    """The experiments of the study, a line each: numbers, name, question, cost."""
    from fastcka.experiments import registry

    rows = []
    for name, experiment in registry.experiments().items():
        question, _, _ = experiment.__doc__.partition("\n")
        cost = re.search(r"Costs? (.+?)\.(?:\s|$)", experiment.__doc__, re.DOTALL)
        cost = " ".join(cost[1].split()) if cost else ""
        rows.append((", ".join(experiment.NUMBERS), name, question, cost))
    return _table(rows)


def arms() -> str:
    """The networks of the study, a line each: accuracy, what is learned, where the weights are."""
    from fastcka.models import small

    rows = []
    for name, arm in ARMS.items():
        network, _, tag = name.partition(".")
        path = small.trained(network).get(tag)
        accuracy = "–" if path is None else _known(path)[0]
        rows.append((name, f"{accuracy:>6}", arm.recipe.label, _place(path)))
    return _table(rows)


def networks() -> str:
    """The trained networks that can be loaded by name, a line each, and how."""
    from fastcka.models import small

    rows = [("network", "accuracy", "recipe", "weights")]
    for network in small.NETWORKS:
        for tag, path in small.trained(network).items():
            rows.append((f"{network}.{tag}", *_known(path), _place(path)))
    first = f"fastcka compare {rows[1][0]} {rows[-1][0]}" if rows[1:] else "fastcka train --help"
    return f"{_table(rows)}\n\nEach is a model by this name: {first}"


def _known(path: Path) -> tuple[str, str]:
    """Accuracy and recipe of trained weights, in words."""
    try:
        known = known_of(path)
        return f"{known['accuracy']:.1%}", unlike_plain(known["recipe"]) or "plain"
    except (ValueError, LookupError, TypeError):  # one that is damaged does not hide the others
        return "–", "not known: the file is damaged, or not of `fastcka train`"


def _place(path: Path | None) -> str:
    from fastcka.models import small

    if path is None:
        return "not trained yet"
    return "in the package" if path.parent == small.WEIGHTS else str(path)


def _table(rows: Sequence[Sequence[str]]) -> str:
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{c:<{w}}" for c, w in zip(row, wide, strict=True)).rstrip() for row in rows
    )


def layers(model: str, layers="**", img_size: int | None = None) -> str:
    """The layers of a model as a table: name, type, size of an activation, parameters, presets.

    The model runs once, untrained, on noise.
    """
    from fastcka.models import load

    network = load(model, img_size=img_size)
    found: dict[str, torch.Size] = {}
    capture = Capture(network.module, layers, model)
    images = torch.randn(
        EXAMPLES, *network.data_config["input_size"], generator=torch.Generator().manual_seed(0)
    )
    with evaluating(network.module):
        capture.run(
            lambda net: net(images), EXAMPLES, lambda name, x: found.update({name: x.shape})
        )
    modules = named(capture.model)
    chosen = {preset: _names(preset, modules, model) for preset in PRESETS}
    rows = [("layer", "type", "activation", "parameters", "preset")]
    for name in capture.layers:
        module = modules[name if name in modules else name.rpartition("#")[0]]
        rows.append(
            (
                name,
                type(module).__name__,
                " x ".join(map(str, found[name][1:])),
                f"{sum(p.numel() for p in module.parameters()):,}",
                " ".join(preset for preset, names in chosen.items() if name in names),
            )
        )
    return "\n".join([_table(rows), *capture.notices])


def _names(preset: str, modules: dict, model: str) -> set[str]:
    try:
        return {wanted.name for wanted in find(preset, modules, model)}
    except ValueError:  # not for this family
        return set()
