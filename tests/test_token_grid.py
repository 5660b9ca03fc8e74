"""Where tokens lie in the image: by what networks do with a map whose values are positions."""

import pytest
import timm
import torch
from torch import nn

from fastcka.analysis.attention import AttentionCapture
from fastcka.analysis.token_grid import places_of, token_grid
from fastcka.capture import Capture
from fastcka.models import load, small  # noqa: F401  # registers names of timm


def build(name, **options):
    return timm.create_model(name, **options).eval()


def shapes(model, x, layers):
    found = {}
    with torch.no_grad():
        Capture(model, layers).run(lambda m: m(x), len(x), lambda k, a: found.update({k: a.shape}))
    return found


def places(model, x, layers=None):
    """Of all attention of one forward pass."""
    found = {}

    def sink(attention):
        found[attention.name] = places_of(attention)

    capture = AttentionCapture(model, layers)
    with torch.no_grad(), capture.watching(len(x), sink):
        model(x)
    return found


# Network, options, image, layer -> rows, cols, prefix, patch.
GRIDS = [
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": (32, 64)}, "blocks.0", (2, 4, 1, (16, 16))),
    ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32}, "patch_embed", (2, 2, 0, (16, 16))),
    (
        "vit_tiny_patch16_224",
        {"depth": 1, "img_size": 32, "class_token": False, "global_pool": "avg"},
        "blocks.0.attn.qkv",
        (2, 2, 0, (16, 16)),
    ),
    (
        "vit_tiny_patch16_224",
        {"depth": 1, "img_size": 32, "reg_tokens": 4},
        "blocks.0.mlp.fc1",
        (2, 2, 5, (16, 16)),
    ),
    ("deit_tiny_distilled_patch16_224", {"depth": 1, "img_size": 32}, "norm", (2, 2, 2, (16, 16))),
    ("vit_small_patch16_dinov3", {"depth": 1, "img_size": 32}, "blocks.0", (2, 2, 5, (16, 16))),
    ("fastcka_mixer_mini", {}, "blocks.3", (8, 8, 0, (8, 8))),
    ("mvitv2_small_cls", {"img_size": 64}, "stages.0.blocks.0", (16, 16, 1, (4, 4))),
    ("mvitv2_tiny", {"img_size": 64}, "stages.2.blocks.0", (4, 4, 0, (16, 16))),
    ("swin_tiny_patch4_window7_224", {"img_size": 64}, "layers.1.blocks.0", (8, 8, 0, (8, 8))),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64},
        "layers.1.blocks.0.mlp.fc1",
        (8, 8, 0, (8, 8)),
    ),
    ("resnet18", {}, "layer2.0", (8, 12, 0, (8, 8))),
    ("convnext_atto", {}, "stages.1.blocks.0", (8, 12, 0, (8, 8))),
]


@pytest.mark.parametrize(
    ("name", "options", "layer", "expected"), GRIDS, ids=[f"{row[0]}-{row[2]}" for row in GRIDS]
)
def test_grid_of_a_layer(name, options, layer, expected):
    model = build(name, **options)
    size = options.get("img_size", 64 if "mini" in name else (64, 96))
    size = (size, size) if isinstance(size, int) else size
    shape = shapes(model, torch.rand(1, 3, *size), layer)[layer]
    grid = token_grid(model, layer, shape, size)
    assert (grid.rows, grid.cols, grid.prefix, grid.patch) == expected
    assert len(shape) == 4 or grid.tokens == shape[1]
    assert grid.centre == (grid.rows // 2, grid.cols // 2)


def test_tokens_lie_where_the_patch_embedding_saw_them():
    """An image whose values are its own coordinates, through an embedding that takes means."""
    model = build("vit_tiny_patch16_224", img_size=(32, 64), depth=1)
    nn.init.constant_(model.patch_embed.proj.weight, 0)
    nn.init.constant_(model.patch_embed.proj.bias, 0)
    for channel in (0, 1):
        nn.init.constant_(model.patch_embed.proj.weight[channel, channel], 1 / 256)
    image = torch.zeros(1, 3, 32, 64)
    image[0, 0] = torch.arange(32)[:, None] + 0.5
    image[0, 1] = torch.arange(64) + 0.5
    with torch.no_grad():
        seen = model.patch_embed(image)[0, :, :2]
    grid = token_grid(model, "blocks.0", [1, 9, 192], (32, 64))
    torch.testing.assert_close(grid.places()[1:].float(), seen)
    assert grid.places()[:1].isnan().all()
    assert [grid.index(*cell) for cell in ((0, 0), (0, 3), (1, 0))] == [1, 4, 5]
    assert grid.places()[grid.index(1, 2)].tolist() == [24, 40]


@pytest.fixture(scope="module")
def hiera():
    return build("hiera_tiny_224", img_size=(64, 128), stages=(2, 1, 2, 1))


def test_mask_units_of_hiera_are_rolled_back(hiera):
    """The network's own way back to a map puts every token into the cell that the grid says."""
    x = torch.rand(1, 3, 64, 128)
    found = shapes(hiera, x, "blocks.*")
    assert found["blocks.0"][1] == 16 * 32
    assert found["blocks.5"][1] == 2 * 4
    for layer, shape in found.items():
        grid = token_grid(hiera, layer, shape, (64, 128))
        numbers = torch.arange(shape[1])[None, :, None]
        rolled = hiera.reroll(numbers, int(layer.split(".")[1]))[0, :, :, 0]
        assert list(rolled.shape) == [grid.rows, grid.cols]
        assert torch.equal(rolled.flatten()[grid.cells], torch.arange(shape[1]))
        assert grid.index(1, 2) == rolled[1, 2]


def test_a_bright_patch_is_at_its_token_of_hiera(hiera):
    """Before any attention mixes: norm of the first block, against an image without it."""
    found = []
    layer = "blocks.0.norm1"
    image = torch.zeros(2, 3, 64, 128)
    row, col = 5, 21
    image[1, :, 4 * row, 4 * col] = 1  # the middle of its 7 x 7 kernel, and in no other
    capture = Capture(hiera, layer)
    with torch.no_grad():
        capture.run(lambda m: m(image), 2, lambda name, x: found.append(x.clone()))
    changed = (found[0][1] - found[0][0]).norm(dim=1)
    grid = token_grid(hiera, layer, found[0].shape, (64, 128))
    assert grid.index(row, col) == changed.argmax()


def test_queries_and_keys_of_hiera(hiera):
    """Mask units in the first stages, all tokens later; pooled queries are at their keys' mean."""
    found = places(hiera, torch.rand(1, 3, 64, 128))
    assert [list(p.queries.shape) for p in found.values()] == [
        [8, 64, 2],
        [8, 64, 2],
        [8, 16, 2],
        [8, 4, 2],
        [1, 32, 2],
        [1, 8, 2],
    ]
    first = found["blocks.0.attn"]
    span = first.keys.amax(1) - first.keys.amin(1)
    assert (span == 28).all()  # units of 8 x 8 cells of 4 pixels
    pooled = found["blocks.2.attn"]
    for unit in range(8):
        of_each = torch.cdist(pooled.queries[unit], pooled.keys[unit]).topk(4, largest=False)
        assert torch.allclose(of_each.values, torch.tensor(8.0).double().sqrt())
        torch.testing.assert_close(pooled.keys[unit][of_each.indices].mean(1), pooled.queries[unit])


def on_positions(model, block, rows, cols):
    """What attention of a Swin block is called with, on a map whose values are (row, col) + 1."""
    x = torch.zeros(1, rows, cols, block.attn.qkv.in_features)
    x[..., 0] = torch.arange(rows)[:, None] + 1
    x[..., 1] = torch.arange(cols) + 1
    found = []
    hook = block.attn.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad():
        (block._attn if hasattr(block, "_attn") else block._shifted_window_attn)(x)
    hook.remove()
    return found[0][..., :2]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0.blocks"),
        ("swinv2_tiny_window8_256", "layers.0.blocks"),
        ("swinv2_cr_tiny_224", "stages.0.blocks"),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (80, 64)], ids=["whole", "padded"])
@pytest.mark.parametrize("number", [0, 1], ids=["plain", "shifted"])
def test_windows_of_swin_are_where_the_block_takes_them_from(name, layer, size, number):
    """The block's own shift, padding and cutting, on a map that says its rows and columns."""
    model = build(name, img_size=size, window_size=8, depths=(2, 1, 1, 1))
    found = places(model, torch.rand(2, 3, *size), f"{layer}.{number}.attn")
    rows, cols = size[0] // 4, size[1] // 4
    block = model.get_submodule(f"{layer}.{number}")
    assert any(block.shift_size) == bool(number)
    seen = on_positions(model, block, rows, cols)
    expected = torch.where(seen > 0, (seen - 0.5) * 4, torch.nan)
    for ends in found[f"{layer}.{number}.attn"]:
        torch.testing.assert_close(ends.float(), expected, equal_nan=True)


@pytest.mark.parametrize("name", ["mvitv2_tiny", "mvitv2_small_cls"])
def test_pooled_queries_and_keys_of_mvit(name):
    """Means of a map of positions, pooled as the network pools; away from the padding."""
    model = build(name, img_size=64)
    called = {}

    def note(module, args, output):
        called[module] = args[1], output[1]

    for module in model.modules():
        if hasattr(module, "pool_q"):
            module.register_forward_hook(note)
    found = places(model, torch.rand(1, 3, 64, 64))
    prefix = int(name.endswith("cls"))
    assert len(found) > 9
    for layer, ends in found.items():
        module = model.get_submodule(layer)
        size, after = called[module]
        assert ends.queries.shape[1] == prefix + after[0] * after[1]
        assert ends.queries[0, :prefix].isnan().all()
        cell = 64 / size[0]
        x = ((torch.arange(size[0]) + 0.5) * cell).double()
        x = torch.stack(torch.meshgrid(x, x, indexing="ij"))[None]
        for pool, placed in zip((module.pool_q, module.pool_k), ends, strict=True):
            y = x
            if pool is not None:
                y = nn.functional.avg_pool2d(x, pool.kernel_size, pool.stride, pool.padding)
            inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
            placed = placed[:, prefix:].mT.unflatten(2, y.shape[2:])
            assert placed.shape == y.shape
            torch.testing.assert_close(placed[inside], y[inside])


def test_a_network_that_takes_images_of_any_size():
    model = build("vit_tiny_patch16_224", img_size=32, depth=1, dynamic_img_size=True)
    found = places(model, torch.rand(1, 3, 48, 32))["blocks.0.attn"]
    assert found.queries[0, -1].tolist() == [40, 24]
    padded = build(
        "vit_tiny_patch16_224", img_size=32, depth=1, dynamic_img_size=True, dynamic_img_pad=True
    )
    found = places(padded, torch.rand(1, 3, 40, 32))["blocks.0.attn"]
    assert found.keys[0, -1].tolist() == [40, 24]


def test_a_shipped_network_and_one_within_another():
    model = nn.Sequential(load("fastcka_vit_mini", pretrained=True).module)
    shape = shapes(model, torch.rand(2, 3, 64, 64), "0.blocks.7")["0.blocks.7"]
    grid = token_grid(model, "0.blocks.7", shape, (64, 64))
    assert (grid.rows, grid.cols, grid.prefix, grid.patch) == (8, 8, 1, (8, 8))
    assert grid.places()[grid.index(*grid.centre)].tolist() == [36, 36]
    found = places(model, torch.rand(2, 3, 64, 64), "0.blocks.7.attn")["0.blocks.7.attn"]
    assert torch.equal(found.queries[0].nan_to_num(-1), grid.places().nan_to_num(-1))


def test_refusals():
    model = build("vit_tiny_patch16_224", img_size=32, depth=1)
    grid = token_grid(model, "blocks.0", [2, 5, 192], (32, 32))
    with pytest.raises(ValueError, match=r"`row`, `col` must be a cell of 2 x 2, but are 2, 0"):
        grid.index(2, 0)
    with pytest.raises(
        ValueError, match=r"`layer` must name a module of the network, and 'block\.0'"
    ):
        token_grid(model, "block.0", [2, 5, 192], (32, 32))
    with pytest.raises(ValueError, match=r"layer 'head' has no tokens: .* but is \[2, 10\]"):
        token_grid(model, "head", [2, 10], (32, 32))
    with pytest.raises(
        ValueError, match="there are 7, and an image of 32 x 32 pixels is 2 x 2 pat"
    ):
        token_grid(model, "blocks.0", [2, 7, 192], (32, 32))
    with pytest.raises(ValueError, match="has no patch embedding that says into what it cuts"):
        token_grid(nn.Sequential(nn.Linear(2, 2)), "0", [2, 5, 2], (32, 32))


def test_tokens_of_hiera_that_are_of_no_level(hiera):
    with pytest.raises(ValueError, match="there are 9, and its grid has none of so many cells"):
        token_grid(hiera, "blocks.0", [1, 9, 96], (64, 128))


class Attending(nn.Module):
    """Attention over whatever it is called with, as its own query, key and value."""

    def __init__(self, **said):
        super().__init__()
        self.__dict__.update(said)

    def forward(self, x):
        x = x.flatten(2).mT[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x)


def refused(model, x):
    with pytest.raises(ValueError, match="no attention that can be used") as caught:
        places(model, x)
    return str(caught.value)


def test_attention_whose_place_is_not_known():
    images = torch.rand(2, 3, 4, 4)
    assert "does not say how many tokens come before the patches" in refused(Attending(), images)
    assert "no image [n, channels, height, width] came" in refused(Attending(), images.flatten(2))
    assert "not called with the size of the map" in refused(
        Attending(pool_q=None, pool_k=None), images
    )
    other = nn.Module()
    other.proj = nn.Conv2d(3, 3, 2, stride=2)
    net = Attending(num_prefix_tokens=0)
    net.patch_embed = other
    assert "16 queries by 16 keys in 1 windows an image, and the network's tokens are 4" in refused(
        net, images
    )
    windowed = nn.Sequential(Attending())
    windowed.shift_size, windowed.window_size = 0, 2
    assert "not called with a map [n, rows, cols, channels]" in refused(
        nn.Sequential(nn.Flatten(2), windowed), images
    )
