"""Attention as it is used, how far it looks, and heads taken together."""

import math

import numpy as np
import pytest
import timm
import torch
from tolerance import FLOAT64, REORDERED, U32, assert_close
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import fastcka
from fastcka import Tap
from fastcka.analysis import attention as pieces
from fastcka.analysis.attention import AttentionCapture
from fastcka.analysis.attention_distance import AttentionDistance, mean_distance, uniform_distance
from fastcka.analysis.head_windows import windows
from fastcka.analysis.token_grid import places_of
from fastcka.capture import Capture
from fastcka.capture.selection import Unusable
from fastcka.maths import attention as definition
from fastcka.models import load, small  # noqa: F401  # registers names of timm

# A softmax and a sum of some hundred terms in float32.
CLOSE = 256 * U32


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def captured(model, x, layers=None, piece=None):
    """Attention by module, [images, heads, windows, queries, keys], put together from pieces."""
    found = {}

    def sink(attention):
        whole = torch.full(attention.shape, math.nan, dtype=torch.float64)
        for part in attention.pieces():
            whole[part.images, :, :, part.queries] = part.weights.double()
        found[attention.name] = whole

    capture = AttentionCapture(model, layers, piece)
    with torch.no_grad(), capture.watching(len(x), sink):
        model(x)
    return {name: found[name] for name in capture.taken}


def distances(model, x, **options):
    observer = AttentionDistance(**options)
    with torch.no_grad(), observer.watching(model, len(x)) as values:
        model(x)
    return dict(values), observer


class Given(nn.Module):
    """A network of one attention, with these weights, over a grid of cells."""

    num_prefix_tokens = 0

    def __init__(self, weights, patch=16, prefix=0):
        super().__init__()
        self.num_prefix_tokens = prefix
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 2, patch, stride=patch)
        self.weights = torch.as_tensor(weights).double()

    def forward(self, x):
        weights = self.weights.expand(len(x), -1, -1, -1)
        return (weights.log()).softmax(-1)


def distance_of(weights, size=224, patch=16, prefix=0, **options):
    """[heads] of given attention [heads, tokens, tokens]."""
    model = Given(weights, patch, prefix)
    values, observer = distances(model, torch.zeros(2, 3, size, size), **options)
    assert torch.allclose(*values[""], rtol=0, atol=0, equal_nan=True)
    return values[""][0], observer.uniform[""]


# --- the definitions -----------------------------------------------------------------------------


def test_uniform_attention_has_its_closed_form():
    """The oracle table of the analysis: sides of grids and patches, and the limit."""
    known = {
        (7, 32): (115.502894, 117.909204),
        (14, 16): (116.492227, 117.089623),
        (16, 14): (116.565053, 117.022171),
    }
    for (side, patch), (all_tokens, others) in known.items():
        assert definition.uniform_distance(side, side, patch) == pytest.approx(all_tokens, abs=1e-6)
        without = definition.uniform_distance(side, side, patch, itself=False)
        assert without == pytest.approx(others, abs=1e-6)
        assert uniform_distance((side, side), patch) == pytest.approx(all_tokens, abs=1e-6)
    assert uniform_distance((8, 8), 4) == pytest.approx(16.545931, abs=1e-6)
    assert uniform_distance((24, 24), 16) == pytest.approx(200.047983, abs=1e-6)
    limit = (2 + math.sqrt(2) + 5 * math.log(1 + math.sqrt(2))) / 15
    assert limit == pytest.approx(0.521405, abs=1e-6)
    assert uniform_distance((400, 400), 1 / 400) == pytest.approx(limit, abs=1e-5)
    assert uniform_distance((1, 1), 16) == 0


def test_uniform_attention_of_a_rectangle_and_of_two_grids():
    expected = definition.uniform_distance(3, 5, 8)
    assert uniform_distance((3, 5), 8) == pytest.approx(expected, rel=REORDERED)
    assert uniform_distance((3, 5), (8, 8), (3, 5)) == pytest.approx(expected, rel=REORDERED)
    x, y = definition.coordinates(4, 6, 4), definition.coordinates(2, 3, 8)
    expected = definition.attention_distance(np.full((24, 6), 1 / 6), x, y)
    assert uniform_distance((4, 6), 4, (2, 3)) == pytest.approx(expected, rel=REORDERED)
    assert uniform_distance((4, 2), (4, 8)) == pytest.approx(
        uniform_distance((2, 4), (8, 4)), rel=REORDERED
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((0, 3), 16), r"must have cells and `patch` a side above 0, but they are \(0, 3\)"),
        (((3, 3), 0), "a side above 0, but they are .* and 0"),
        (((3, 3), 4, (3, 0)), r"but they are \(3, 3\), \(3, 0\) and 4"),
    ],
)
def test_uniform_attention_over_nothing(arguments, text):
    with pytest.raises(ValueError, match=text):
        uniform_distance(*arguments)


# --- mean attention distance, of attention that is known -----------------------------------------


def test_distance_of_heads_that_are_known():
    side, n = 14, 196
    x = definition.coordinates(side, side, 16)
    corner = np.zeros((n, n))
    corner[:, 0] = 1
    heads = [
        definition.mixed(n, 1),
        definition.mixed(n, 0),
        definition.mixed(n, 0.25),
        definition.shifted(side, side, 0, 1),
        definition.shifted(side, side, 1, 0),
        definition.windowed(side, side, 1),
        corner,
    ]
    found, uniform = distance_of(np.stack(heads))
    expected = [116.492227, 0, 0.25 * 116.492227, 16 * 13 / 14, 16 * 13 / 14, 16.698065, 161.0302]
    assert_close(found, np.array(expected), 1e-4)
    assert found[1] == 0
    by_definition = [definition.attention_distance(head, x) for head in heads]
    assert_close(found, np.array(by_definition), FLOAT64 * 100)
    assert uniform == pytest.approx(116.492227, abs=1e-6)
    assert abs(found[0] - 148.5714) > 30  # mean of |rows| + |columns|
    assert abs(found[0] - 128.9961) > 10  # root of the mean square


def test_a_window_in_small_grids():
    found, _ = distance_of(definition.windowed(7, 7, 1)[None], patch=32)
    assert_close(found, np.array([32.435526]), 1e-6)
    inside = definition.windowed(7, 7, 1)[24]
    x = definition.coordinates(7, 7, 32)
    interior = definition.attention_distance([inside], [x[24]], x)
    assert interior == pytest.approx(32 * (4 + 4 * math.sqrt(2)) / 9)


def test_rows_are_not_columns():
    """Two rows of seven: a head that looks along a row looks further than one along a column."""
    model = Given(
        np.stack([definition.shifted(2, 7, 0, 3), definition.shifted(2, 7, 1, 0)]), patch=(16, 8)
    )
    values, _ = distances(model, torch.zeros(1, 3, 32, 56))
    assert_close(values[""][0], np.array([8 * (4 * 3 + 2 + 1) / 7, 16 / 2]), 1e-9)


def test_tokens_before_the_patches_are_cut():
    uniform = np.full((1, 197, 197), 1 / 197)
    kept, _ = distance_of(uniform, prefix=1)
    assert_close(kept, np.array([115.900896]), 1e-6)
    scaled, _ = distance_of(uniform, prefix=1, renormalize=True)
    assert_close(scaled, np.array([116.492227]), 1e-6)
    far = np.zeros((1, 6, 6))
    far[:, :, 0] = 1
    nowhere, _ = distance_of(far, size=32, prefix=2)
    assert nowhere == 0


def test_a_query_that_attends_to_no_patch_has_no_distance():
    """Renormalised, it is left out; where it is every query's case there is no number."""
    weights = np.zeros((2, 5, 5))
    weights[:, :, 0] = 1
    weights[0, 1] = [0.5, 0, 0.5, 0, 0]
    found, _ = distance_of(weights, size=32, prefix=1, renormalize=True)
    assert found[0] == 16
    assert found[1].isnan()


def test_a_head_with_less_of_itself_looks_further():
    shares = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    found, uniform = distance_of(
        np.stack([definition.mixed(49, share) for share in shares]), patch=32
    )
    assert_close(found, torch.tensor(shares) * uniform, 1e-5)


# --- attention as networks use it ----------------------------------------------------------------


# Network and options; each has the size of the images, and what is attended over: windows of
# [heads, windows, queries, keys] in the first attention.
SEEN = {
    "ViT with a class token": ("vit_tiny_patch16_224", {"img_size": (32, 64)}, (3, 1, 9, 9)),
    "ViT without": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "class_token": False, "global_pool": "avg"},
        (3, 1, 4, 4),
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 32}, (3, 1, 6, 6)),
    "registers": ("vit_tiny_patch16_224", {"img_size": 32, "reg_tokens": 4}, (3, 1, 9, 9)),
    "norms of q and k": ("vit_tiny_patch16_224", {"img_size": 32, "qk_norm": True}, (3, 1, 5, 5)),
    "DeiT III": ("deit3_small_patch16_224", {"img_size": 32}, (6, 1, 5, 5)),
    "CLIP": ("vit_base_patch32_clip_224", {"img_size": 64}, (12, 1, 5, 5)),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, (6, 1, 9, 9)),
    "DINOv3": ("vit_small_patch16_dinov3", {"img_size": 32}, (6, 1, 9, 9)),
    "EVA-02": ("eva02_tiny_patch14_224", {"img_size": 28}, (3, 1, 5, 5)),
    "BEiT": ("beit_base_patch16_224", {"img_size": 32}, (12, 1, 5, 5)),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "depths": (2, 1)},
        (3, 4, 16, 16),
    ),
    "MViTv2": ("mvitv2_tiny", {"img_size": 32}, (1, 1, 64, 4)),
    "Hiera": ("hiera_tiny_224", {"img_size": (64, 32), "stages": (1, 1, 1, 1)}, (1, 2, 64, 64)),
    "shipped": ("fastcka_vit_mini", {"img_size": 64}, (4, 1, 65, 65)),
    "shipped without class token": ("fastcka_vit_mini_gap", {"img_size": 64}, (4, 1, 64, 64)),
}
SHALLOW = ("vit", "deit", "eva", "beit")


def family(kind):
    name, options, shape = SEEN[kind]
    options = dict(options)
    if name.startswith(SHALLOW):
        options["depth"] = 2
    if name.startswith("swin"):
        options |= {"embed_dim": 48, "num_heads": (3, 6)}
    size = options["img_size"]
    size = (size, size) if isinstance(size, int) else size
    return build(name, **options), torch.rand(2, 3, *size), shape


@pytest.fixture
def no_fused_attention():
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


@pytest.mark.parametrize("kind", SEEN)
def test_every_family(kind):
    """Rows sum to 1; the output is what it was; distances are those of the definition."""
    model, x, shape = family(kind)
    with torch.no_grad():
        alone = model(x)
        observer, outputs = AttentionDistance(), []
        with observer.watching(model, 2) as values:
            outputs.append(model(x))
    assert torch.equal(outputs[0], alone)
    assert observer.notices == ()
    found = captured(model, x)
    assert list(found) == list(values)
    assert found[next(iter(found))].shape == (2, *shape)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    second = captured(model, x[1:])
    for name, whole in second.items():
        assert_close(found[name][1:], whole, CLOSE)
    assert any((found[name][0] - whole[0]).abs().max() > CLOSE for name, whole in second.items())
    ends = {}
    capture = AttentionCapture(model)
    with torch.no_grad(), capture.watching(2, lambda one: ends.update({one.name: places_of(one)})):
        model(x)
    for name, whole in found.items():
        assert_close(whole.sum(-1), torch.ones(whole.shape[:-1]), CLOSE)
        assert values[name].shape == whole.shape[:2]
        assert values[name].dtype == torch.float64
        queries, keys = ends[name]
        real = ~queries[0, :, 0].isnan(), ~keys[0, :, 0].isnan()
        by_definition = [
            definition.attention_distance(
                whole[-1, -1, window][real[0]][:, real[1]], queries[window, real[0]],
                keys[window, real[1]],
            )
            for window in range(whole.shape[2])
        ]  # fmt: skip
        assert_close(values[name][-1, -1], np.mean(by_definition), 1e-4)


ABSENT = {
    "Mixer": "fastcka_mixer_mini",
    "ResNet": "fastcka_resnet_mini",
}


@pytest.mark.parametrize("kind", ABSENT)
def test_networks_without_attention_are_told(kind):
    text = "no attention that can be used: a forward pass calls neither .*: Mixers, CNNs and linear"
    with pytest.raises(ValueError, match=text):
        distances(build(ABSENT[kind]), torch.rand(2, 3, 64, 64))


UNFUSED = ["ViT with a class token", "norms of q and k", "DINOv3", "BEiT", "EVA-02"]


@pytest.mark.parametrize("kind", UNFUSED)
def test_fused_attention_is_that_of_the_network_without_it(kind, no_fused_attention):
    """Against the weights that the network's own dropout is called with when nothing is fused."""
    explicit, x, _ = family(kind)
    taken = {}
    layers = [name for name, module in explicit.named_modules() if name.endswith("attn_drop")]
    with torch.no_grad():
        Capture(explicit, layers).run(
            lambda m: m(x), 2, lambda name, a: taken.update({name: a.double()})
        )
    timm.layers.set_fused_attn(True)
    fused, _, _ = family(kind)
    fused.load_state_dict(explicit.state_dict())
    assert all(module.fused_attn for module in fused.modules() if hasattr(module, "fused_attn"))
    found = captured(fused, x)
    assert len(found) == len(taken) == 2
    for name, weights in taken.items():
        assert_close(found[name.removesuffix(".attn_drop")][:, :, 0], weights, 1e-6)


@pytest.mark.parametrize("kind", ["Hiera", "Swin"])
def test_windows_without_and_with_fused_attention(kind):
    model, x, _ = family(kind)
    ways = []
    for fused in (False, True):
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        ways.append(captured(model, x))
    for name, weights in ways[0].items():
        assert_close(ways[1][name], weights, 1e-6)


def attend(q, k, **options):
    """What is seen of a call of `scaled_dot_product_attention`."""
    model = nn.Module()
    model.forward = lambda x: functional.scaled_dot_product_attention(q, k, k, **options)
    return captured(model, torch.zeros(len(q)))[""][:, :, 0]


def test_masks_scales_and_grouped_heads_are_those_of_the_call():
    """Values that are the identity hand out the weights themselves."""
    q, k = torch.randn(2, 4, 6, 3), torch.randn(2, 4, 6, 3)
    eye = torch.eye(6).expand(2, 4, 6, 6)
    masks = [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(6, 6)},
        {"attn_mask": torch.randn(2, 1, 6, 6)},
        {"attn_mask": (torch.rand(2, 4, 6, 6) > 0.5) | torch.eye(6, dtype=torch.bool)},
        {"attn_mask": torch.ones(1, 6, dtype=torch.bool).tril()},
    ]
    for options in masks:
        expected = functional.scaled_dot_product_attention(q, k, eye, **options)
        assert_close(attend(q, k, **options), expected, 1e-6)
    nothing = attend(q, k, attn_mask=torch.zeros(6, 6, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros_like(nothing))
    pairs = functional.scaled_dot_product_attention(q, k[:, :2], eye[:, :2], enable_gqa=True)
    assert_close(attend(q, k[:, :2], enable_gqa=True), pairs, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types(dtype):
    """Of the values as received: 16 bits in q and k, float32 from there on."""
    q, k = torch.randn(1, 2, 9, 8).to(dtype), torch.randn(1, 2, 9, 8).to(dtype)
    expected = torch.softmax(q.double() @ k.double().mT / math.sqrt(8), -1)
    assert_close(attend(q, k), expected, FLOAT64 if dtype == torch.float64 else CLOSE)


def test_autocast_of_the_network_is_none_of_ours():
    model, x, _ = family("ViT with a class token")
    with torch.autocast("cpu", torch.bfloat16):
        found = captured(model, x)["blocks.0.attn"]
    assert_close(found.sum(-1), torch.ones(found.shape[:-1]), CLOSE)


def test_pieces_of_any_size_are_the_same_attention():
    model, x, _ = family("ViT with a class token")
    x = torch.rand(5, 3, 32, 64)
    whole = captured(model, x)
    values, _ = distances(model, x)
    for piece in (1, 30, 3 * 9 * 9, 1000):
        for name, weights in captured(model, x, piece=piece).items():
            assert_close(weights, whole[name], CLOSE)
        for renormalize in (False, True):
            expected, _ = distances(model, x, renormalize=renormalize)
            few, _ = distances(model, x, piece=piece, renormalize=renormalize)
            for name in values:
                assert_close(few[name], expected[name], 1e-4)


def test_an_untrained_network_attends_to_all_alike():
    """White noise: 15.11 to 15.13 in every head of 4 x 4 patches of 8 pixels; uniform 15.1192."""
    model = build(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=64, num_heads=4
    )
    values, observer = distances(model, torch.randn(64, 3, 32, 32))
    for name, found in values.items():
        assert 15.1 < found.mean(0).min() <= found.mean(0).max() < 15.14
        assert observer.uniform[name] == pytest.approx(15.1192, abs=1e-4)


def test_heads_of_a_trained_network_differ():
    model = load("fastcka_vit_mini", pretrained=True)
    images = fastcka.data.Cues(8, transform=model.transform())
    x = torch.stack([images[i][0] for i in range(8)])
    values, observer = distances(model.module, x)
    assert list(values) == [f"blocks.{i}.attn" for i in range(8)]
    for name, found in values.items():
        assert found.shape == (8, 4)
        assert 0 < found.min() <= found.max() < 64 * math.sqrt(2)
        # One of the 65 tokens is the class token.
        assert observer.uniform[name] == pytest.approx(uniform_distance((8, 8), 8) * 64 / 65)
    spread = [(found.mean(0).max() - found.mean(0).min()).item() for found in values.values()]
    assert max(spread) > 1  # pixels; of an untrained one less than a tenth of that


# --- memory --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation makes, views aside."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("piece", [None, 16 * 197 * 197, 16 * 197 * 10])
def test_no_attention_of_a_batch_is_ever_whole(piece):
    """16 heads of 197 tokens and 64 images: 159 MB of weights, of which 1 MB exist at a time."""
    q = torch.zeros(64, 16, 197, 4)
    model, x = Given(torch.ones(1, 1, 1), prefix=1), torch.zeros(64, 3, 224, 224)
    model.forward = lambda x: functional.scaled_dot_product_attention(q, q, q)
    largest, found = Largest(), []

    def sink(attention):
        with largest:
            found.append(mean_distance(attention, places_of(attention)))

    with torch.no_grad(), AttentionCapture(model, piece=piece).watching(64, sink):
        model(x)
    assert_close(found[0], np.full((64, 16), 115.900896), 1e-4)
    most = piece or pieces.PIECE_CPU
    assert most / 2 < largest.elements <= most


# --- what cannot be seen -------------------------------------------------------------------------


def refusal(model, x=None, error=ValueError, **options):
    with pytest.raises(error) as caught:
        captured(model, torch.zeros(2, 3, 8, 8) if x is None else x, **options)
    return str(caught.value)


def as_network(forward, **said):
    model = nn.Module()
    model.forward = forward
    model.__dict__.update(said)
    return model


def test_multi_head_attention_of_torch_is_told():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.layer(x)

    text = refusal(Encoder().eval(), torch.rand(2, 5, 8))
    assert "'layer.self_attn' of model 'a' left out: nn.MultiheadAttention computes its" in text


def test_linear_attention_is_told_by_name():
    class LinearAttention(nn.Module):
        def forward(self, x):
            return x @ (x.mT @ x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = LinearAttention(), nn.Module()
            self.second.forward = lambda x: functional.scaled_dot_product_attention(x, x, x)

        def forward(self, x):
            return self.second(self.first(x)[:, None])

    capture = AttentionCapture(Net())
    with capture.watching(2, lambda attention: None):
        capture.model(torch.rand(2, 5, 4))
    assert capture.taken == ("second",)
    assert len(capture.notices) == 1
    assert "'first' of model 'a' left out: it computes no softmax over keys" in capture.notices[0]
    text = refusal(Net(), torch.rand(2, 5, 4), layers="first")
    assert text.startswith("attention of 'first' of model 'a' cannot be used: it computes no soft")


def test_attention_that_is_not_its_softmax_is_told():
    q = torch.rand(2, 4, 5, 3)

    def twice(x):
        first = functional.scaled_dot_product_attention(q, q, q)
        return first - functional.scaled_dot_product_attention(q, -q, q)

    def once(x):
        return functional.scaled_dot_product_attention(q, q, q)

    assert "several times in one call" in refusal(as_network(twice))
    assert "mixes the heads after the softmax" in refusal(as_network(once, proj_w=None))
    assert "of 2 images, with 8 heads" in refusal(as_network(once, num_heads=8))
    assert "its axes [8, 5, 3] are not [images or windows, heads, tokens, …] of 2" in refusal(
        as_network(lambda x: functional.scaled_dot_product_attention(*[q.flatten(0, 1)] * 3))
    )
    assert "of 3 images" in refusal(as_network(once), torch.zeros(3, 3, 8, 8))


def test_softmax_elsewhere_is_no_attention():
    x = torch.rand(2, 3, 4, 5)
    for forward in (
        lambda _: x.softmax(1),
        lambda _: torch.softmax(x, dim=-2),
        lambda _: functional.softmax(x[0], -1),
    ):
        assert "calls neither scaled dot-product attention nor" in refusal(as_network(forward))
    for forward in (
        lambda _: x.softmax(-1),
        lambda _: torch.softmax(x, dim=3),
        lambda _: functional.softmax(x, dim=-1),
        nn.Sequential(nn.Softmax(-1)).forward,
    ):
        net = as_network(lambda y, forward=forward: forward(x))
        assert_close(captured(net, x)[""][:, :, 0], x.double().softmax(-1), CLOSE)


def test_a_module_that_is_called_twice_is_two():
    model = Given(definition.mixed(4, 1)[None])
    outer = nn.Sequential(model)
    outer.forward = lambda x: (model(x), model(x))
    values, _ = distances(outer, torch.zeros(2, 3, 32, 32))
    assert list(values) == ["0", "0#2"]


def test_names_and_globs():
    model, x, _ = family("ViT with a class token")
    assert list(captured(model, x, layers="blocks.1.attn")) == ["blocks.1.attn"]
    assert list(captured(model, x, layers=["blocks.*.attn"])) == ["blocks.0.attn", "blocks.1.attn"]
    assert "has no layer 'blocks.7.attn'; did you mean" in refusal(model, x, layers="blocks.7.attn")
    assert (
        "attention of 'blocks.0.mlp' of model 'a' cannot be used: a forward pass comp"
        in refusal(model, x, layers="blocks.0.mlp")
    )
    assert "can be used among 'blocks.0.mlp', 'blocks.1.mlp': a forward pass calls" in refusal(
        model, x, layers="blocks.*.mlp"
    )
    assert "`layers` must be names or globs of attention modules, or None for all" in refusal(
        model, x, layers=Tap("blocks.0.attn"), error=TypeError
    )
    assert "`piece` must be a number of weights, 1 or more, but is 0" in refusal(model, x, piece=0)


def test_a_sink_may_refuse_and_errors_leave_no_hooks():
    model, x, _ = family("ViT with a class token")

    def sink(attention):
        if attention.name == "blocks.0.attn":
            raise Unusable("not this one")

    capture = AttentionCapture(model)
    with torch.no_grad(), capture.watching(2, sink):
        model(x)
    assert capture.taken == ("blocks.1.attn",)
    assert capture.notices == ("'blocks.0.attn' of model 'a' left out: not this one",)

    def broken(attention):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), capture.watching(2, broken):
        model(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_rejected_later_is_no_value():
    """A pass in which one module attends twice: its first distance is not handed out."""
    model = Given(definition.mixed(4, 1)[None])
    good = Given(definition.mixed(4, 1)[None])
    outer = nn.Sequential(model, good)
    once = model.forward
    model.forward = lambda x: (once(x), once(x))
    outer.forward = lambda x: (model(x), good(x))
    values, observer = distances(outer, torch.zeros(2, 3, 32, 32))
    assert list(values) == ["1"]
    assert "several times" in observer.notices[0]


def test_observers_watch_the_same_pass():
    model, x, _ = family("Hiera")
    first, second = AttentionDistance(), AttentionDistance(renormalize=True)
    taken = []
    with (
        torch.no_grad(),
        first.watching(model, 2) as one,
        second.watching(model, 2) as two,
        Capture(model, ["unroll"]).watching(2, lambda name, a: taken.append(name)),
    ):
        model(x)
    assert taken == ["unroll"]
    for name in one:
        assert_close(one[name], two[name], 1e-4)


# --- heads, and heads together -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViT with a class token", "registers", "DINOv3", "DeiT III"])
def test_the_output_of_a_head_is_reached_by_a_tap(kind):
    """Attention of a head times its values, at the input of the projection, patches alone."""
    model, x, _ = family(kind)
    layer = "blocks.0.attn"
    taps = [
        Tap(f"{layer}.proj", side="input", select=f"head:{head}", tokens="patches")
        for head in (0, 2)
    ]
    values, heads = [], []
    with torch.no_grad():
        Capture(model, taps).run(lambda m: m(x), 2, lambda name, a: heads.append(a.clone()))
        Capture(model, Tap(f"{layer}.qkv")).run(
            lambda m: m(x), 2, lambda name, a: values.append(a.clone())
        )
    count = model.blocks[0].attn.num_heads
    v = values[0].unflatten(-1, (3, count, -1))[:, :, 2].transpose(1, 2)
    expected = captured(model, x)[layer][:, :, 0] @ v.double()
    prefix = model.num_prefix_tokens
    for number, got in zip((0, 2), heads, strict=True):
        assert_close(got, expected[:, number, prefix:], 1e-5)


def hsic_table(xs, ys):
    return np.array([[fastcka.hsic(x, y) for y in ys] for x in xs])


def test_windows_are_cka_of_heads_side_by_side():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(40, 12, generator=g, dtype=torch.float64)
    heads = [base @ torch.randn(12, 6, generator=g, dtype=torch.float64) for _ in range(5)]
    others = [base[:, :3] ** 2 + base[:, 1:4], base[:, 5:] * 3]
    distance = np.array([30.0, 10, 50, 20, 40])
    order = [1, 3, 0, 4, 2]
    for k in (1, 2, 3, 5):
        mean, cka = windows(
            hsic_table(heads, heads),
            hsic_table(heads, others),
            [fastcka.hsic(y, y) for y in others],
            distance,
            k,
        )
        assert cka.shape == (6 - k, 2)
        for first in range(6 - k):
            group = order[first : first + k]
            assert mean[first] == pytest.approx(distance[group].mean())
            together = torch.cat([heads[h] for h in group], 1)
            for m, other in enumerate(others):
                assert cka[first, m] == pytest.approx(fastcka.cka(together, other), abs=FLOAT64)


def test_heads_of_white_tokens_against_a_local_layer():
    """CKA falls from 1 to 1/√N as the distance rises, by the closed form and by features."""
    n, width = 49, 4
    shares = np.array([0, 0.25, 0.5, 0.75, 1])
    heads = [definition.mixed(n, share) for share in shares]
    closed = (1 + (n - 1) * (1 - shares) ** 2) / np.sqrt(n * (1 + (n - 1) * (1 - shares) ** 4))
    exact = [definition.cka_of_white_tokens(head, np.eye(n)) for head in heads]
    assert_close(exact, closed, REORDERED)
    assert closed[0] == 1
    assert closed[-1] == pytest.approx(1 / 7)
    assert (np.diff(closed) < 0).all()
    found, uniform = distance_of(np.stack(heads), patch=32)
    population = width * np.array([[np.linalg.norm(a @ b.T) ** 2 for b in heads] for a in heads])
    mean, cka = windows(population, population[:, :1], population[:1, 0], found, 1)
    assert_close(mean, shares * uniform, 1e-5)
    assert_close(cka[:, 0], closed, REORDERED)
    tokens = np.random.default_rng(0).standard_normal((512, n, width))
    local = tokens.reshape(512, -1)
    measured = [fastcka.cka((head @ tokens).reshape(512, -1), local) for head in heads]
    assert_close(measured, closed, 0.02)


def test_identity_beside_mixed_heads_of_196_tokens():
    found = [
        definition.cka_of_white_tokens(definition.mixed(196, share), np.eye(196))
        for share in (0.1, 0.25, 0.5, 0.75, 0.9, 1)
    ]
    assert np.round(found, 4).tolist() == [0.9999, 0.9985, 0.9786, 0.7097, 0.2087, 0.0714]


def test_windows_without_a_value_and_refusals():
    eye, ones = np.eye(3), np.ones((3, 2))
    _, cka = windows(np.diag([0.0, 1, 1]), ones, [1, 0], [1, 2, 3], 1)
    assert np.isnan(cka).tolist() == [[True, True], [False, True], [False, True]]
    mean, _ = windows(eye, ones, [1, 1], [1, 2, 3], np.int64(3))
    assert mean.tolist() == [2]
    shapes = r"must be \[H, H\], \[H, M\], \[M\], \[H\], but are "
    for arguments in (
        (eye, ones, [1, 1], [1, 2]),
        (eye, ones, [1], [1, 2, 3]),
        (np.ones((3, 2)), ones, [1, 1], [1, 2, 3]),
        (np.ones((0, 0)), np.ones((0, 0)), [], []),
    ):
        with pytest.raises(ValueError, match=shapes):
            windows(*arguments, 1)
    for k in (0, 4, True, 1.5):
        with pytest.raises(ValueError, match="`k` must be a number of heads from 1 to 3, but is"):
            windows(eye, ones, [1, 1], [1, 2, 3], k)
