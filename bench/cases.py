"""The shapes that are measured, each one a layer of a real network, and the data in them."""

from typing import NamedTuple

import torch

# Features of one example at an input of 224 × 224, the most telling shapes first: a run that is
# stopped has measured these.
FEATURES = {
    "vit_b_tokens": 197 * 768,  # block output of ViT-B/16: what the study of ViTs taps most
    "vit_b_cls": 768,  # one token of it: the call costs more than the work
    "resnet_layer4": 2048 * 7 * 7,  # last stage of ResNet-50 before pooling
    "resnet_pooled": 2048,  # what most published comparisons of CNNs use
    "vit_h_cls_mlp": 4 * 1280,  # one token in an MLP of ViT-H/14: cheap with many examples
    "resnet_layer3": 1024 * 14 * 14,  # the stages of a CNN double in size towards the input
    "vit_l_tokens": 197 * 1024,  # as large as layer3, at another alignment
    "resnet_layer2": 512 * 28 * 28,
    "vit_b_qkv": 197 * 3 * 768,
    "vit_b_mlp": 197 * 4 * 768,  # the widest layer of ViT-B/16
    "resnet_layer1": 256 * 56 * 56,  # the widest of ResNet-50; its stem, 64 × 112², is as wide
    "vit_l_mlp": 197 * 4 * 1024,  # the widest of all; with n = 1024 the one that may not fit
}

# Examples in a CKA batch: the usual one; bound by memory; bound by arithmetic.
COUNTS = (256, 64, 1024)

# Layers of a pair of networks: blocks of ViT-B/16, all leaves of it, all leaves of ViT-L/16.
LAYERS = (12, 87, 171)


class Scale(NamedTuple):
    """How large everything is that bench/gpu.py measures."""

    features: dict[str, int]
    counts: tuple[int, ...]
    layers: tuple[int, ...]
    side: int  # of the square matrices whose product gives the matrix rate
    buffer: int  # bytes that are read for the bandwidth: far more than any L2 holds
    seconds: float  # of measuring, a case
    together: tuple[int, ...] = ()  # layers that are reduced in one call
    networks: tuple[tuple[str, str], ...] = ()  # whose CKA is taken while they run, of which layers
    at_least: int = 7  # rounds, however long they take


NETWORKS = (
    ("vit_base_patch16_224", "blocks"),
    ("resnet50", "blocks"),
    ("vit_large_patch16_224", "blocks"),
    ("vit_base_patch16_224", "products"),
    ("resnet50", "products"),
)
FULL = Scale(FEATURES, COUNTS, LAYERS, 8192, 1 << 30, 0.5, together=(8,), networks=NETWORKS)
# A round of the widest layers takes minutes on a CPU.
CPU = Scale(FEATURES, COUNTS, LAYERS, side=0, buffer=1 << 28, seconds=1, at_least=5)
# The same code in a second, for tests: two shapes, one of them larger than a chunk of features.
SMOKE = Scale(
    features={"one": 100, "chunks": 20_000},
    counts=(16,),
    layers=(3,),
    side=64,
    buffer=1 << 20,
    seconds=0.01,
    together=(2,),
    networks=(("test_vit", "blocks"),),
)

# What `pytest bench/` measures on CPUs, from narrow to wide.
ON_CPU = [
    *("vit_b_cls", "resnet_pooled", "vit_h_cls_mlp", "resnet_layer4", "vit_b_tokens"),
    *("resnet_layer3", "resnet_layer2", "vit_b_mlp", "resnet_layer1"),
]
# Cases of more flop are marked slow: without them two cores need a few minutes, with them hours.
QUICK = 20e9


def activations(n, p, dtype, device="cpu"):
    """Examples that share eight directions, with noise of their own and a mean per feature.

    Never zeros: they hide unwritten outputs and let a GPU clock higher than real data would. Made
    piece by piece, so that nothing larger than the result is held.
    """
    generator = torch.Generator(device).manual_seed(n + p)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    x = torch.empty(n, p, dtype=dtype, device=device)
    latent = normal(n, 8) / 8**0.5
    for part in x.split(16_384, dim=1):
        width = part.shape[1]
        part.copy_(latent @ normal(8, width) + normal(n, width) + normal(1, width))
    return x


def packed_stack(layers, n, device="cpu"):
    """Packed triangles of `layers` related layers, [layers, n(n−1)/2] in float64."""
    generator = torch.Generator(device).manual_seed(layers + n)
    options = {"generator": generator, "device": device, "dtype": torch.float64}
    length = n * (n - 1) // 2
    return torch.randn(layers, length, **options) + torch.randn(1, length, **options)
