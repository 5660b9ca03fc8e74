"""What there is to choose from: `fastcka list`."""

import torch

from fastcka.capture import Capture
from fastcka.capture.matching import find
from fastcka.capture.modules import evaluating, named
from fastcka.capture.presets import PRESETS

# Enough that their number is no other size of an activation.
EXAMPLES = 5


def models(pattern: str = "*") -> str:
    """The models that timm has, a line each."""
    from fastcka.models import known

    return "\n".join(known(pattern))


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
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, wide, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *capture.notices])


def _names(preset: str, modules: dict, model: str) -> set[str]:
    try:
        return {wanted.name for wanted in find(preset, modules, model)}
    except ValueError:  # not for this family
        return set()
