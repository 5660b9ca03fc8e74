"""The shorter list of layers of Raghu et al. 2021: about four a block, two of a CNN's.

Theirs is not said; the axes of figures 8, G.2, H.1 and H.2 are that long.
"""

from fastcka.capture.presets import NORMS
from fastcka.experiments.runner.needs import Comparison, Side
from fastcka.experiments.runner.subjects import CNN, Subject

BRANCHES = (("attn", "mlp"), ("mlp_tokens", "mlp_channels"))


def coarse(one: Subject) -> tuple[str, ...]:
    """Both norms and both branches of every block, and the last block; of a CNN, the last norm of
    every block and the block. Of blocks of other parts, or that attend within windows, the blocks.

    >>> from fastcka import models
    >>> mixer = Subject("mixer", models.load("fastcka_mixer_mini", num_blocks=2))
    >>> coarse(mixer)[:4]
    ('blocks.0.norm1', 'blocks.0.mlp_tokens', 'blocks.0.norm2', 'blocks.0.mlp_channels')
    >>> coarse(mixer)[-1]
    'blocks.1'
    """
    if one.family == CNN:
        return tuple(name for block in one.blocks for name in (*_last_norm(one, block), block))
    for first, second in BRANCHES:
        parts = ("norm1", first, "norm2", second)
        names = [f"{block}.{part}" for block in one.blocks for part in parts]
        in_windows = any(hasattr(one.modules.get(name), "window_size") for name in names)
        if all(name in one.modules for name in names) and not in_windows:
            return (*names, one.blocks[-1])
    return one.blocks


def layers_alike(a: Subject, b: Subject) -> Comparison:
    return Comparison(Side(a.name, coarse(a)), Side(b.name, coarse(b)))


def _last_norm(one: Subject, block: str) -> list[str]:
    found = [
        name
        for name, module in one.modules.items()
        if name.rpartition(".")[0] == block and isinstance(module, NORMS)
    ]
    return found[-1:]
