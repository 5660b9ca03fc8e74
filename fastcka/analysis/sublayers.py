"""Where branches leave and join the main path of a network: taps before and after the addition."""

import re
from dataclasses import dataclass

from torch import nn

from fastcka.capture import Tap
from fastcka.capture.modules import named, unwrap
from fastcka.capture.presets import blocks

# What the parts of a block are called in timm, and of ResNets in torchvision too.
PARTS = {
    "transformer": ("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"),
    "mixer": ("norm1", "mlp_tokens", "norm2", "mlp_channels", "drop_path"),
    "convnext": ("conv_dw", "norm", "mlp", "shortcut", "drop_path"),
    "resnet": ("conv1", "conv2"),
}
FIRST_CONVOLUTIONS = ("conv1", "stem.conv", "stem")

Modules = dict[str, nn.Module]


@dataclass(frozen=True)
class Residual:
    """One addition z + f(z): where the skip connection z and its long branch f(z) can be read.

    Args:
        name: the sublayer: a block's, followed by ".attn" or ".mlp" where a block has two.
        skip: z, after a projection of it, if there is one.
        branch: f(z) as it is added, with its LayerScale.
        total: z + f(z); None where nothing but an activation function sees it.
    """

    name: str
    skip: Tap
    branch: Tap
    total: Tap | None = None


def after_residual(model: nn.Module) -> list[Tap]:
    """Where the main path can be read after each addition, in order of depth.

    Transformers and mixers: after attention, or the MLP of tokens, the input of `norm2`, and after
    the MLP the output of the block (Raghu et al. 2021, Fig. 6). ResNets: the first convolution and
    the blocks; ConvNeXts: the stem and the blocks.

    Args:
        model: a network of timm's pre-norm blocks (ViT, DeiT, DINO, CLIP, EVA, Swin, MViT), of its
            mixers, ResNets and ConvNeXts, or a ResNet of torchvision.

    Raises:
        ValueError: its blocks are others, normalise behind their branches, or move their tokens.

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    >>> [(tap.pattern, tap.side) for tap in after_residual(vit)]
    [('blocks.0.norm2', 'input'), ('blocks.0', 'output')]
    """
    modules = named(unwrap(model))
    taps = []
    for name, kind in _blocks_of(model, modules):
        if kind in ("transformer", "mixer"):
            taps += [Tap(f"{name}.norm2", side="input"), Tap(name)]
            continue
        if not taps:
            taps += [Tap(stem) for stem in FIRST_CONVOLUTIONS if stem in modules][:1]
        taps.append(Tap(name))
    return taps


def before_residual(model: nn.Module) -> list[Tap]:
    """Where each branch can be read before it is added, in order of depth.

    Transformers: the outputs of `attn` and `mlp`, before LayerScale (Raghu et al. 2021, Fig. C.4);
    of windowed attention the output of `drop_path1`, where the windows are an image again. Mixers:
    both calls of `drop_path`, as `mlp_tokens` itself returns channels first. ResNets: the last norm
    (`bn3`) or convolution (`conv3` of BiT) of a block, or its squeeze and excitation; ConvNeXts:
    `drop_path`.

    Args:
        model: as for `after_residual`.

    Raises:
        ValueError: as for `after_residual`.

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    >>> [tap.pattern for tap in before_residual(vit)]
    ['blocks.0.attn', 'blocks.0.mlp']
    """
    modules = named(unwrap(model))
    taps = []
    for name, kind in _blocks_of(model, modules):
        if kind == "transformer":
            windowed = hasattr(modules[name], "window_size")
            taps += [Tap(f"{name}.{'drop_path1' if windowed else 'attn'}"), Tap(f"{name}.mlp")]
        else:
            taps += [residual.branch for residual in _residuals(name, kind, modules)]
    return taps


def residuals(model: nn.Module) -> list[Residual]:
    """Every addition of a skip connection and its branch, in order of depth.

    Transformers and mixers have two a block, `BLOCK.attn` (of mixers `BLOCK.mlp_tokens`) and
    `BLOCK.mlp` (`BLOCK.mlp_channels`); ResNets and ConvNeXts one, `BLOCK`.

    Args:
        model: as for `after_residual`.

    Raises:
        ValueError: as for `after_residual`, or skip connections are pooled (MViT).

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    >>> [(r.name, r.skip.pattern, r.branch.pattern) for r in residuals(vit)]
    [('blocks.0.attn', 'blocks.0', 'blocks.0.drop_path1'), \
('blocks.0.mlp', 'blocks.0.norm2', 'blocks.0.drop_path2')]
    """
    modules = named(unwrap(model))
    found = []
    for name, kind in _blocks_of(model, modules):
        if hasattr(modules[name], "shortcut_pool_attn"):
            raise ValueError(
                f"`model` must add its branches to skip connections that a module takes or "
                f"returns, but {name!r} of {_class(model)} pools them in between; there is no norm "
                "ratio of it here"
            )
        found += _residuals(name, kind, modules)
    return found


def moves_tokens(modules: Modules) -> bool:
    """Whether tokens stand in an order of their own, not row by row: networks like Hiera."""
    return any(unrolls(module) for module in modules.values())


def unrolls(module: nn.Module) -> bool:
    """Whether it is a Hiera, which has a part that puts its tokens into another order."""
    return hasattr(module, "unroll")


def _residuals(name: str, kind: str, modules: Modules) -> list[Residual]:
    block = Tap(name, side="input")
    if kind == "convnext":
        return [Residual(name, Tap(f"{name}.shortcut"), Tap(f"{name}.drop_path"), Tap(name))]
    if kind == "resnet":
        parts = list(modules[name]._modules)
        # Squeeze and excitation stands behind the last norm, or between two convolutions.
        ends = [part for part in parts if re.fullmatch(r"(conv|bn|norm)\d|se", part)]
        projection = f"{name}.downsample"
        skip = Tap(projection) if projection in modules else block
        # But for those that activate first, blocks end in a ReLU after the addition.
        total = Tap(name) if ends[0].startswith("norm") else None
        return [Residual(name, skip, Tap(f"{name}.{ends[-1]}"), total)]
    between = Tap(f"{name}.norm2", side="input")
    if kind == "mixer":
        paths = [Tap(f"{name}.drop_path", call=call) for call in (1, 2)]
        parts = "mlp_tokens", "mlp_channels"
    else:
        paths = [Tap(f"{name}.drop_path{i}") for i in (1, 2)]
        parts = "attn", "mlp"
    return [
        Residual(f"{name}.{parts[0]}", block, paths[0], between),
        Residual(f"{name}.{parts[1]}", between, paths[1], Tap(name)),
    ]


def _blocks_of(model: nn.Module, modules: Modules) -> list[tuple[str, str]]:
    """Every block by name, and its kind."""
    kinds = {name: _kind(module) for name, module in modules.items()}
    # A single block is none of the repeated ones.
    names = [tap.pattern for tap in blocks(modules) if modules[tap.pattern]._modules]
    names = names or [name for name in modules if kinds[name]]
    strange = [name for name in names if not kinds[name]]
    if strange or not names:
        blocks_are = f"its {strange[0]!r} is none of these" if strange else "there are none"
        raise ValueError(
            "`model` must be made of pre-norm transformer blocks, mixer, ResNet or ConvNeXt blocks "
            f"with the parts that timm gives them, but {_class(model)} is not, {blocks_are}; name "
            "the layers as Taps"
        )
    if moves_tokens(modules):
        raise ValueError(
            f"`model` must keep its tokens in the order of the image, but {_class(model)} moves "
            "them; it has no centre cell and no tokens to compare"
        )
    for name in names:
        parts = list(modules[name]._modules)
        # A block lists its parts in the order in which it calls them.
        if kinds[name] == "transformer" and parts.index("attn") < parts.index("norm1"):
            raise ValueError(
                "`model` must normalise before its branches, so that the input of `norm2` is the "
                f"main path, but {name!r} of {_class(model)} normalises behind them; this "
                "measurement is of pre-norm networks"
            )
    return [(name, kinds[name]) for name in names]


def _kind(module: nn.Module) -> str | None:
    for kind, parts in PARTS.items():
        if all(isinstance(getattr(module, part, None), nn.Module) for part in parts):
            if kind == "resnet":
                return kind if hasattr(module, "downsample") else None
            # With a third norm there is a third branch.
            return None if hasattr(module, "norm3") else kind
    return None


def _class(model: nn.Module) -> str:
    return type(unwrap(model)).__name__
