"""From what a user asks for to the layers of a network."""

import pytest
import timm
import torch
from torch import nn

from fastcka import Tap
from fastcka.capture.matching import find, matches
from fastcka.capture.modules import named
from fastcka.capture.presets import blocks, leaves, raghu


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3)


def names(layers, model):
    return [wanted.name for wanted in find(layers, named(model), "a")]


def on_meta(name):
    with torch.device("meta"):
        return named(timm.create_model(name))


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("blocks.*", "blocks.3", True),
        ("blocks.*", "blocks.3.attn", False),
        ("blocks.*.attn", "blocks.3.attn", True),
        ("**.attn", "blocks.3.attn", True),
        ("**.attn", "attn", True),
        ("**", "blocks.3.attn", True),
        ("blocks.**.fc?", "blocks.3.mlp.fc1", True),
        ("blocks.**.fc?", "blocks.3.mlp.act", False),
        ("blocks.[01]", "blocks.2", False),
        ("layer*.0", "layer4.0", True),
        ("Blocks.*", "blocks.3", False),
    ],
)
def test_a_glob_matches_part_by_part(pattern, name, expected):
    assert matches(name, pattern) is expected


def test_names_globs_types_and_taps_may_be_mixed(vit):
    asked = ["norm", "blocks.*.attn", nn.Conv2d, Tap("blocks.0", tokens="cls")]
    expected = ["norm", *(f"blocks.{i}.attn" for i in range(3)), "patch_embed.proj", "blocks.0"]
    assert names(asked, vit) == expected


def test_a_layer_asked_for_twice_is_one_row(vit):
    assert names(["blocks.1", "blocks.*"], vit) == ["blocks.1", "blocks.0", "blocks.2"]


def test_the_number_of_a_call_belongs_to_the_name(vit):
    [wanted] = find("blocks.0#2", named(vit), "a")
    assert (wanted.name, wanted.tap.call, wanted.explicit) == ("blocks.0", 2, True)


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("vit_base_patch16_224", 12, "blocks.0", "blocks.11"),
        ("vit_base_patch16_dinov3", 12, "blocks.0", "blocks.11"),
        ("resnet50", 16, "layer1.0", "layer4.2"),
        ("resnet10t", 4, "layer1.0", "layer4.0"),
        ("resnetv2_50x1_bit", 16, "stages.0.blocks.0", "stages.3.blocks.2"),
        ("mixer_b16_224", 12, "blocks.0", "blocks.11"),
        ("mvitv2_tiny", 10, "stages.0.blocks.0", "stages.3.blocks.1"),
        ("hiera_tiny_224", 12, "blocks.0", "blocks.11"),
        ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0", "layers.3.blocks.1"),
        ("convnext_tiny", 18, "stages.0.blocks.0", "stages.3.blocks.2"),
        ("efficientnet_b0", 16, "blocks.0.0", "blocks.6.0"),
        ("pit_ti_224", 12, "transformers.0.blocks.0", "transformers.2.blocks.3"),
        ("efficientformer_l1", 15, "stages.0.blocks.0", "stages.3.blocks.4"),
    ],
)  # fmt: skip
def test_blocks_are_those_of_the_family(name, count, first, last):
    found = [tap.pattern for tap in blocks(on_meta(name))]
    assert (len(found), found[0], found[-1]) == (count, first, last)


def test_a_network_without_blocks_gives_its_leaves():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert [tap.pattern for tap in blocks(named(net))] == ["0", "1.0", "1.1"]


def test_blocks_with_a_module_among_the_layers_of_a_list_are_blocks():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), Gate(), nn.ReLU())

    net = nn.Sequential(nn.Linear(4, 4), Block(), Block())
    assert [tap.pattern for tap in blocks(named(net))] == ["1", "2"]


def test_a_block_made_of_a_list_of_convolutions_with_norms_is_a_block():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut, self.layer = nn.Identity(), nn.Sequential(Conv(), Conv(), Conv())

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(Bottleneck(), Bottleneck())

    net = nn.Sequential(Conv(), nn.ModuleList([Stage(), Stage()]))
    found = [tap.pattern for tap in blocks(named(net))]
    assert found == ["1.0.layers.0", "1.0.layers.1", "1.1.layers.0", "1.1.layers.1"]


def test_leaves_do_something_in_evaluation_mode(vit):
    found = [tap.pattern for tap in leaves(named(vit))]
    assert "blocks.0.attn.qkv" in found
    assert "blocks.0.mlp.act" in found
    assert not any(name.endswith(("drop", "drop1", "drop_path1", "ls1")) for name in found)


@pytest.mark.parametrize(
    ("name", "count"),
    [  # 6 a block + 2; 7 a unit + 11 [Raghu et al. 2021, the axes of Fig. 1]
        ("vit_base_patch32_224", 74),
        ("vit_large_patch16_224", 146),
        ("vit_huge_patch14_224", 194),
        ("resnet50", 123),
        ("resnet152", 361),
    ],
)
def test_raghu_has_as_many_layers_as_the_axes_of_the_paper(name, count):
    assert len(raghu(on_meta(name))) == count


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch 2.11 itself
def test_wrappers_are_not_part_of_a_name():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    net[0] = torch.compile(net[0])
    assert set(named(net)) == {"", "0", "1"}
    assert isinstance(named(net)["0"], nn.Linear)


@pytest.mark.parametrize(
    ("tap", "suffix"),
    [
        (Tap("a"), ""),
        (Tap("a", side="input"), " input"),
        (Tap("a", tokens="cls"), "[cls]"),
        (Tap("a", tokens=(2, 3)), "[(2,3)]"),
        (Tap("a", select=slice(0, 64), tokens=5), "[0:64][5]"),
        (Tap("a", select=slice(64, None)), "[64:]"),
        (Tap("a", select=slice(None, None, 2)), "[::2]"),
        (Tap("a", side="input", select="head:3"), " input[head:3]"),
        (Tap("a", select=torch.relu), "[relu]"),
    ],
)
def test_what_is_taken_is_seen_in_the_name(tap, suffix):
    assert tap.suffix == suffix
