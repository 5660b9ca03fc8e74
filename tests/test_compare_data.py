"""What a comparison is given: batches, loaders, views, and in which order."""

import itertools
import shutil
import warnings
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import pytest
import timm
import torch
from data import defined_cka
from networks import activations, defined, images, net
from PIL import Image
from tolerance import CKA, assert_close
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import CKAWarning
from fastcka.data import ImageBatches, write_images


def labelled(count=64, classes=4):
    return images(count), torch.arange(count) * classes // count


def test_a_dict_reaches_the_model_as_keywords():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 6)
            self.pool = nn.Identity()

        def forward(self, input_ids, attention_mask):
            weight = attention_mask[..., None].float()
            return self.pool((self.embed(input_ids) * weight).sum(1) / weight.sum(1))

    ids = torch.randint(50, (24, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.randint(
        1, 8, (24, 1), generator=torch.Generator().manual_seed(1)
    )
    model = Masked()
    result = fastcka.compare(
        model, data=[{"input_ids": ids, "attention_mask": mask}], layers_a=["pool", "embed"]
    )
    with torch.no_grad():
        expected = defined_cka(model(ids, mask), model.embed(ids))
    assert result.cka[0, 1] == pytest.approx(expected, abs=CKA)


def test_layers_that_were_taken_over_from_the_first_model_say_so():
    with pytest.raises(ValueError, match="model 'b' has no layer '6'") as caught:
        fastcka.compare(net(), nn.Sequential(nn.Flatten()), [images(8)], layers_a=["6"])
    assert caught.value.__notes__ == ["`layers_b` was not given and is as `layers_a`"]


def test_copies_of_an_image_within_a_batch_are_counted(tmp_path):
    folder = write_images(tmp_path / "images", 24, size=16)
    first = sorted(folder.rglob("*.png"))[0]
    for number in range(3):
        shutil.copy(first, first.with_name(f"copy{number}.png"))
    data = ImageBatches(folder, {"x": to_tensor}, batch_size=27)
    with pytest.warns(CKAWarning, match="^3 images stand in their batch a second time"):
        fastcka.compare(
            net(size=16), data=data, layers_a="leaves", input_a=lambda batch: batch["views"]["x"]
        )


def test_a_float_target_is_no_view():
    x, target = images(20), torch.randn(20, 3, 8, 8)
    found = fastcka.compare(net(), net(seed=1), [(x, target)], layers_a="leaves")
    expected = fastcka.compare(net(), net(seed=1), [x], layers_a="leaves")
    assert np.array_equal(found.cka, expected.cka)


def test_models_of_different_input_sizes_see_their_own_view():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    large, small = images(20, 32), images(20, 8)
    result = fastcka.compare(
        vit, net(), [{"large": large, "small": small}], layers_b=["3"],
        input_a=lambda batch: batch["large"], input_b=lambda batch: (batch["small"],),
    )  # fmt: skip
    block = activations(vit.eval(), large, "blocks")[1]
    conv = activations(net(), small)[3]
    assert result.cka[1, 0] == pytest.approx(defined_cka(block, conv), abs=CKA)


def test_a_second_loader_is_read_side_by_side():
    x, y = images(40), images(40, seed=5)
    paired = fastcka.compare(net(), net(seed=1), x.split(20), data_b=y.split(20), layers_a="leaves")
    together = fastcka.compare(
        net(), net(seed=1), list(zip(x.split(20), y.split(20), strict=True)), layers_a="leaves",
        input_a=lambda batch: batch[0], input_b=lambda batch: batch[1],
    )  # fmt: skip
    assert np.array_equal(paired.cka, together.cka)


def test_two_loaders_of_sorted_images_warn_too():
    data = TensorDataset(*labelled())
    loaders = [DataLoader(data, batch_size=16) for _ in range(2)]
    with pytest.warns(CKAWarning) as told:
        result = fastcka.compare(net(), net(), loaders[0], data_b=loaders[1], layers_a=["0"])
    assert len(told) == 2
    assert result.meta["data"] == result.meta["data_b"]


def test_two_folders_are_shuffled_alike_in_every_pass(tmp_path):
    folder = write_images(tmp_path, 24, size=16)
    make = lambda: ImageBatches(folder, {"x": to_tensor}, batch_size=8)  # noqa: E731
    seen = [], []

    def reading(side):
        return lambda batch: seen[side].append(batch["index"].tolist()) or batch["views"]["x"]

    fastcka.compare(
        net(size=16), net(size=16), make(), data_b=make(), layers_a=["0"], passes=2,
        input_a=reading(0), input_b=reading(1),
    )  # fmt: skip
    assert seen[0] == seen[1]
    assert seen[0][:3] != seen[0][3:]


def test_a_dataclass_is_a_batch():
    @dataclass
    class Batch:
        pixels: torch.Tensor

    x = images(20)
    before = x.clone()
    greedy = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)).eval()
    found = fastcka.compare(
        greedy, net(), [Batch(x)], layers_a=["1"], layers_b=["0"],
        forward_a=lambda m, batch: m(batch.pixels), forward_b=lambda m, batch: m(batch.pixels),
    )  # fmt: skip
    assert torch.equal(x, before)
    assert np.array_equal(
        found.cka, fastcka.compare(greedy, net(), [x], layers_a=["1"], layers_b=["0"]).cka
    )


def test_a_loader_of_ready_batches_may_be_split():
    ready = DataLoader(images(64).split(32), batch_size=1, shuffle=True, collate_fn=itemgetter(0))
    assert fastcka.compare(net(), data=ready, layers_a=["0"], n=16).n_batches == 4


@pytest.mark.parametrize(("order", "name"), [(RandomSampler, "RandomSampler"), (None, "unknown")])
def test_the_order_of_a_batch_sampler_is_what_it_says(order, name):
    x = TensorDataset(images(24))
    batches = [[*range(12)], [*range(12, 24)]]
    chosen = BatchSampler(order(x), 12, drop_last=False) if order else batches
    result = fastcka.compare(net(), data=DataLoader(x, batch_sampler=chosen), layers_a=["0"])
    assert result.meta["data"]["order"] == name


def test_a_model_that_cannot_be_moved_stays_where_it_is():
    model = net()
    with pytest.raises(RuntimeError, match="`device` is 'meta', where there are no values"):
        fastcka.compare(model, data=[images(8)], device="meta")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_forward_replaces_the_call():
    x, model = images(20), net()
    found = fastcka.compare(
        model,
        data=[{"pixels": x}],
        layers_a=["0"],
        forward_a=lambda m, batch: m[0](batch["pixels"]),
    )
    assert found.cka == 1.0


def test_a_model_that_overwrites_its_input_spoils_nothing():
    x = images(40)
    before = x.clone()
    greedy = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)).eval()
    found = fastcka.compare(greedy, net(), x.split(20), layers_a="leaves")
    assert torch.equal(x, before)
    assert_close(found.cka, defined(greedy, net(), x.split(20)), CKA)


def test_sorted_data_warn_and_a_shuffled_loader_does_not():
    x, y = labelled()
    data = TensorDataset(x, y)
    with pytest.warns(CKAWarning) as told:
        result = fastcka.compare(net(), data=DataLoader(data, batch_size=16), layers_a=["0"])
    texts = [str(warning.message) for warning in told]
    assert texts[0].startswith("the data are read in stored order")
    assert texts[1].startswith("batches are sorted by class: two images of a batch share")
    assert result.warnings == tuple(texts)
    assert all(warning.filename == __file__ for warning in told)
    shuffled = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fastcka.compare(net(), data=shuffled, layers_a=["0"]).warnings == ()


def test_a_folder_sorted_by_class_gives_the_number_of_shuffled_images(tmp_path):
    # Grey images: four levels, one a class, and noise that the two networks see differently.
    rng = np.random.default_rng(0)
    for index in range(96):
        folder = tmp_path / f"class{index // 24}"
        folder.mkdir(exist_ok=True)
        pixels = 50 * (index // 24) + 40 + rng.integers(-30, 31, (8, 8, 1)).repeat(3, 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.png")
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(192, 20))
    layers = {"layers_a": ["1"], "layers_b": ["1"]}
    views = {"input_a": itemgetter("x"), "input_b": itemgetter("x")}

    def cka(batches):
        batches = ({"x": batch["views"]["x"]} for batch in batches)
        return fastcka.compare(pooled, mixed, batches, **layers, **views).cka.item()

    data = ImageBatches(tmp_path, {"x": to_tensor}, batch_size=24)
    ours = cka(data)
    [whole] = ImageBatches(tmp_path, {"x": to_tensor}, batch_size=96)
    order = whole["index"].argsort()
    by_class = whole["views"]["x"][order].split(24)
    shuffled = cka([{"views": {"x": whole["views"]["x"]}}])
    in_order = cka([{"views": {"x": x}} for x in by_class])
    assert abs(ours - shuffled) < 0.05
    assert abs(in_order - shuffled) > 0.3


def test_files_that_vanish_midway_lose_nothing(tmp_path):
    write_images(tmp_path, 12, size=16)
    batches = ImageBatches(tmp_path, {"x": to_tensor}, batch_size=4)
    count = itertools.count()

    def view(batch):
        if next(count) == 1:
            shutil.rmtree(tmp_path)
        return batch["views"]["x"]

    with pytest.raises(ValueError, match="cannot read the image") as caught:
        fastcka.compare(net(size=16), data=batches, layers_a=["0"], input_a=view)
    assert caught.value.partial.n_examples == 8
    assert len(caught.value.partial.meta["data"]["sha256"]) == 64
