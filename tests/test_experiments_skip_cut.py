"""Skip connections that are cut post hoc: what the network computes then, and how it is told."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tolerance import FLOAT64, assert_close

from fastcka import data, models
from fastcka.experiments import skip_removed
from fastcka.experiments.registry import experiments
from fastcka.experiments.runner.claims import UNTESTED
from fastcka.experiments.runner.embedded import embedded
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.skip_cut import skip_cut
from fastcka.experiments.runner.study import DONE, Study
from fastcka.experiments.runner.subjects import NO_SKIP, SKIP_CUT, Subject, Subjects
from fastcka.models.skip_cut import cut_skips

VIT = "fastcka_vit_mini"


@pytest.fixture
def vit():
    return Subject("vit", models.load(VIT, pretrained=True))


@pytest.mark.parametrize(
    "name", [VIT, "deit3_small_patch16_224", "vit_little_patch16_reg4_gap_256"]
)
def test_both_branches_of_the_block_replace_what_comes_in_and_no_other_block_changes(name):
    network = models.load(name, img_size=64)
    cut = cut_skips(network, "blocks.2")
    intact, module = network.module.double(), cut.module.double()
    x = torch.randn(2, 9, intact.embed_dim, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for place, (one, other) in enumerate(zip(intact.blocks, module.blocks, strict=True)):
            kept = float(place != 2)
            by_hand = kept * x + one.ls1(one.attn(one.norm1(x)))
            by_hand = kept * by_hand + one.ls2(one.mlp(one.norm2(by_hand)))
            assert_close(other(x), by_hand, FLOAT64)
            x = by_hand


def test_the_network_itself_stays_as_it_is_and_weights_are_the_same(vit):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = vit.network.module(images)
    cut = skip_cut(vit, 4).network
    assert torch.equal(vit.network.module(images), before)
    assert not torch.allclose(cut.module(images), before)
    assert "skips_cut" not in vit.network.provenance
    for one, other in zip(vit.network.module.parameters(), cut.module.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other


def test_the_small_vit_guesses_without_them(vit):
    scenes = [data.Cues(64, seed=2).scene(i) for i in range(64)]
    transform = vit.network.transform()
    images = torch.stack([transform(Image.fromarray(scene.image)) for scene in scenes])
    labels = torch.tensor([scene.factors["label"] for scene in scenes])
    with torch.no_grad():
        intact, cut = (
            (one.network.module(images).argmax(1) == labels).double().mean()
            for one in (vit, skip_cut(vit, 4))
        )
    assert intact > 0.9
    assert cut < 1 / 8 + 4 * (7 / 64 / 64) ** 0.5  # chance, and four standard errors


def test_it_computes_what_one_that_was_trained_so_would_with_these_weights(vit):
    without = models.load(f"{VIT}_noskip4").module
    without.load_state_dict(vit.network.module.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(skip_cut(vit, 4).network.module(images), without(images))


@pytest.mark.parametrize(
    ("name", "block", "is_a"),
    [
        (f"{VIT}_noskip4", "blocks.4", "BlockWithoutSkip"),
        ("resnet10t", "layer1.0", "BasicBlock"),
        ("vit_base_patch16_plus_clip_240", "norm", "LayerNorm"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", "SwinTransformerBlock"),
    ],
)
def test_what_is_no_block_of_a_vit_is_refused(name, block, is_a):
    with torch.device("meta"):
        network = models.Network(name, timm.create_model(name), {}, {})
    with pytest.raises(ValueError, match=f"of {block} of {name} cannot be cut: .* is a {is_a}$"):
        cut_skips(network, block)


@pytest.mark.parametrize("block", [-1, 8, 1.5])
def test_a_block_that_is_not_there_is_refused(vit, block):
    with pytest.raises(ValueError, match=f"of block {block} of vit cannot be cut: its blocks are"):
        skip_cut(vit, block)


def test_it_is_shown_beside_the_claims_and_decides_none_and_a_study_goes_on_with_it(
    vit, tmp_path, monkeypatch
):
    folder = str(data.write_images(tmp_path / "images", 32, size=64))
    cut = skip_cut(vit, 1)
    study = Study(
        Subjects([vit, cut]),
        Sample(folder, count=32, n=16, batch_size=16),
        tmp_path / "out",
        progress=False,
    )
    asked = experiments(["E10"])
    outcome = study.run(asked)["skip_removed"]
    assert outcome.status == DONE, outcome.why
    result = outcome.result
    assert {row.verdict for row in result.verdicts} == {UNTESTED}
    assert {row.of for row in result.verdicts} == {cut.name}
    assert all("cut post hoc, not trained" in row.why for row in result.verdicts)
    assert result.facts["accuracy"][cut.name] is None  # what the weights say is of the intact one
    assert np.isfinite(result.arrays[f"cka/{cut.name}"]).all()
    figures = skip_removed.plot(result)
    assert list(figures) == ["vit", cut.name]
    assert figures[cut.name].axes[0].get_title("left") == "vit (skips of block 1 cut post hoc)"

    def called(self, *args, **options):
        raise AssertionError("all is measured")

    monkeypatch.setattr(type(vit.network.module), "forward", called)
    again = study.run(asked)["skip_removed"].result
    np.testing.assert_array_equal(again.arrays[f"cka/{cut.name}"], result.arrays[f"cka/{cut.name}"])


def test_the_networks_of_the_package_have_one_beside_each_that_was_trained_so():
    subjects, _ = embedded()
    trained, cut = subjects.variants(NO_SKIP), subjects.variants(SKIP_CUT)
    assert [one.variant.value for one in cut] == [one.variant.value for one in trained]
    assert all("cut post hoc" in one.variant.in_words() for one in cut)
    assert all("trained without" in one.variant.in_words() for one in trained)
