"""Small networks of timm's own classes, registered under names of timm: importing this is enough.

For images of 64 pixels in eight classes; about 0.4 million parameters each. `NAME.TAG` are their
trained weights, of which `weights/README.md` says how they came about.
"""

from functools import partial
from pathlib import Path

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import Block, VisionTransformer

from fastcka.cache import networks

WEIGHTS = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"

DEPTH = 8
VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": DEPTH, "num_heads": 4}
GAP = {**VIT, "class_token": False, "global_pool": "avg", "fc_norm": False}
MIXER = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "num_blocks": DEPTH}
RESNET = {"block": BasicBlock, "layers": (2, 2, 2, 2), "channels": (16, 32, 64, 64)}


class BlockWithoutSkip(Block):
    """A block whose two branches replace what comes in, where others add to it."""

    def forward(self, x: torch.Tensor, **options) -> torch.Tensor:
        x = self.drop_path1(self.ls1(self.attn(self.norm1(x), **options)))
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class VisionTransformerWithoutSkip(VisionTransformer):
    """One block has no skip connections [Raghu et al. 2021, figure 8]."""

    def __init__(self, *, without: int, **options):
        super().__init__(**options)
        self.blocks[without].__class__ = BlockWithoutSkip


NETWORKS = {
    "fastcka_vit_mini": (VisionTransformer, VIT),
    "fastcka_vit_mini_gap": (VisionTransformer, GAP),
    "fastcka_resnet_mini": (ResNet, RESNET),
    "fastcka_mixer_mini": (MlpMixer, MIXER),
    **{
        f"fastcka_vit_mini_noskip{i}": (VisionTransformerWithoutSkip, {**VIT, "without": i})
        for i in range(DEPTH)
    },
}


def without_skip(name: str, block: int) -> str:
    """The network that is like another, but for the skip connections of a block.

    Raises:
        ValueError: there is none.

    >>> without_skip("fastcka_vit_mini", 3)
    'fastcka_vit_mini_noskip3'
    """
    without = f"{name}_noskip{block}"
    if without not in NETWORKS:
        raise ValueError(
            f"`no_skip` must be a block of fastcka_vit_mini, 0 to {DEPTH - 1}, but is block "
            f"{block} of {name}"
        )
    return without


def trained(name: str) -> dict[str, Path]:
    """The weights of a network by tag: those of the package, and those that were trained here."""
    found = [
        path
        for folder in (networks(), WEIGHTS)
        for path in sorted(folder.glob(f"{name}.*{SUFFIX}"))
    ]
    return {path.name[len(name) + 1 : -len(SUFFIX)]: path for path in found}


def _cfg(name: str, file: Path | None) -> dict:
    cnn = name == "fastcka_resnet_mini"
    first = {"fastcka_resnet_mini": "conv1", "fastcka_mixer_mini": "stem.proj"}
    return {
        "file": None if file is None else str(file),
        "num_classes": 8,
        "input_size": (3, 64, 64),
        "pool_size": (2, 2) if cnn else None,
        "fixed_input_size": not cnn,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "first_conv": first.get(name, "patch_embed.proj"),
        "classifier": "fc" if cnn else "head",
        "license": "mit",
    }


def _cfgs() -> dict:
    cfgs = {}
    for name in NETWORKS:
        tags = trained(name)
        if "shape" not in tags:
            tags = {"": None} | tags
        # The first is what the bare name means: the plain one, and no other.
        for tag in sorted(tags, key=lambda tag: (tag not in ("", "shape"), tag)):
            cfgs[f"{name}.{tag}" if tag else name] = _cfg(name, tags[tag])
    return generate_default_cfgs(cfgs)


def _create(name: str, pretrained: bool = False, **options) -> torch.nn.Module:
    network, shape = NETWORKS[name]
    return build_model_with_cfg(network, name, pretrained, **{**shape, **options})


default_cfgs = _cfgs()
for _name in NETWORKS:
    _entry = partial(_create, _name)
    _entry.__name__, _entry.__module__ = _name, __name__
    register_model(_entry)
