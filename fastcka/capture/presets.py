"""Named choices of layers: "blocks", "leaves" and "raghu"."""

from collections import Counter
from collections.abc import Callable

from torch import nn

from fastcka.capture.tap import Tap

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
# In evaluation mode these hand on what they are given.
PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
PASSING_NAMES = {"DropPath", "StochasticDepth"}

Modules = dict[str, nn.Module]


def blocks(modules: Modules) -> list[Tap]:
    """The repeated blocks: modules of two and more layers with weights that stand in a list.

    Of a stage that stands in a list and is itself made of a list of blocks, the blocks. A network
    without blocks: its leaves.
    """
    found = {name for name in modules if _is_block(name, modules)}
    for name in sorted(found, key=lambda name: name.count(".")):
        inner = {other for other in found if other.startswith(f"{name}.")}
        if name in found:
            found -= {name} if _is_stage(name, inner, modules) else inner
    kinds = Counter(type(modules[name]) for name in found)
    lists = Counter(_outer_list(name, modules) for name in found)
    repeated = [
        name
        for name in modules
        if name in found and max(kinds[type(modules[name])], lists[_outer_list(name, modules)]) > 1
    ]
    return [Tap(name) for name in repeated] or leaves(modules)


def leaves(modules: Modules) -> list[Tap]:
    """Every module without parts, but for those that do nothing in evaluation mode."""
    names = [
        name
        for name, module in modules.items()
        if name and not module._modules and not _passes(module)
    ]
    return [Tap(name) for name in names]


def raghu(modules: Modules) -> list[Tap]:
    """The layers on the axes of Raghu et al. 2021, Fig. 1, as far as they can be reconstructed.

    Transformers and mixers: six a block (both norms, both branches, the hidden layer of the last
    MLP, the block), the embedding and the final norm. CNNs: every convolution and norm, the blocks,
    and pooling before them.
    """
    of_blocks = [tap.pattern for tap in blocks(modules) if modules[tap.pattern]._modules]
    if not of_blocks:
        raise ValueError(
            "preset 'raghu' needs a network of repeated blocks, and there are none; name the "
            "layers, or take 'leaves'"
        )
    branches = next(
        (
            pair
            for pair in (("attn", "mlp"), ("mlp_tokens", "mlp_channels"))
            if all(f"{block}.{part}" in modules for block in of_blocks for part in pair)
        ),
        None,
    )
    if branches is None:
        return _raghu_cnn(modules, of_blocks)
    first, second = branches
    names = []
    for part in ("norm_pre", "pos_drop", "stem"):
        if part in modules:
            names.append(part)
            break
    for block in of_blocks:
        parts = ("norm1", first, "norm2", f"{second}.act", second)
        names += [f"{block}.{part}" for part in parts if f"{block}.{part}" in modules] + [block]
    for part in ("norm", "fc_norm"):
        if part in modules and not _passes(modules[part]):
            names.append(part)
            break
    return [Tap(name) for name in names]


def _raghu_cnn(modules: Modules, of_blocks: list[str]) -> list[Tap]:
    names, convolutional = [], False
    for name, module in modules.items():
        in_block = any(name.startswith(f"{block}.") for block in of_blocks)
        convolutional |= in_block and isinstance(module, CONVOLUTIONS)
        if (
            isinstance(module, (*CONVOLUTIONS, *NORMS))
            or name in of_blocks
            or (isinstance(module, POOLS) and not in_block)
        ):
            names.append(name)
    if not convolutional:
        raise ValueError(
            "preset 'raghu' knows blocks of `attn` and `mlp`, of token and channel MLPs, and "
            "of convolutions, and these are none of them; name the layers"
        )
    return [Tap(name) for name in names]


def _is_block(name: str, modules: Modules) -> bool:
    module = modules[name]
    return (
        bool(name)
        and not isinstance(module, (*CONTAINERS, *NORMS))
        and isinstance(modules[_parent(name)], CONTAINERS)
        and sum(isinstance(part, WEIGHTED) for part in module.modules()) > 1
    )


def _is_stage(name: str, inner: set[str], modules: Modules) -> bool:
    """Whether it holds a list that consists of blocks, not of layers with a module among them."""
    own = {_parent(other) for other in inner if _parent(_outer_list(other, modules)) == name}
    return any(
        2 * sum(f"{where}.{part}" in inner for part in modules[where]._modules)
        > len(modules[where]._modules)
        for where in own
    )


def _outer_list(name: str, modules: Modules) -> str:
    """The outermost of the lists, one in the other, in which a block stands."""
    where = _parent(name)
    while where and isinstance(modules[_parent(where)], CONTAINERS):
        where = _parent(where)
    return where


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _passes(module: nn.Module) -> bool:
    return isinstance(module, PASSING) or type(module).__name__ in PASSING_NAMES


PRESETS: dict[str, Callable[[Modules], list[Tap]]] = {
    "blocks": blocks,
    "leaves": leaves,
    "raghu": raghu,
}
