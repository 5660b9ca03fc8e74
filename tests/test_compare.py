"""Whole comparisons: the number, what may go wrong on the way, and how models are left."""

import copy
import warnings
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import pytest
import timm
import torch
from data import as_float64, defined_cka
from PIL import Image
from tolerance import CKA, FLOAT64, OPERAND, REORDERED, assert_close
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import CKAWarning, Tap
from fastcka.capture import Capture
from fastcka.maths import cka as definition


def net(inplace=True, seed=0, size=8, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(width * size * size, 5),
    ).eval()


def images(count, size=8, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def activations(model, x, layers="leaves"):
    """Every layer of one forward pass in evaluation mode, in order."""
    taken, hooks = {}, Capture(model, layers)
    with torch.no_grad():
        hooks.run(lambda m: m(x.clone()), len(x), lambda name, a: taken.update({name: a.clone()}))
    return [taken[name] for name in hooks.layers]


def defined(model_a, model_b, batches, layers="leaves"):
    """Minibatch CKA of all pairs by the float64 definition, on the activations as they are."""
    a = [[as_float64(x) for x in activations(model_a, batch, layers)] for batch in batches]
    b = [[as_float64(y) for y in activations(model_b, batch, layers)] for batch in batches]
    return np.array(
        [
            [
                definition.minibatch([xs[i] for xs in a], [ys[j] for ys in b])
                for j in range(len(b[0]))
            ]
            for i in range(len(a[0]))
        ]
    )


# The number


def test_the_number_is_that_of_the_definition():
    a, b, batches = net(), net(seed=1, width=4), images(70).split(32)
    result = fastcka.compare(a, b, batches, layers_a="leaves")
    assert result.layers_a == result.layers_b == tuple("0123456")
    assert (result.n_batches, result.n_examples) == (3, 70)
    assert_close(result.cka, defined(a, b, batches), CKA)


def test_in_place_and_shared_activations_change_nothing():
    batches = images(40).split(20)
    expected = fastcka.compare(net(inplace=False), data=batches, layers_a="leaves")
    found = fastcka.compare(net(inplace=True), data=batches, layers_a="leaves")
    assert np.array_equal(found.cka, expected.cka)


def test_a_model_with_itself_is_the_two_model_case():
    model, batches = net(), images(40).split(20)
    alone = fastcka.compare(model, data=batches, layers_a="leaves")
    twice = fastcka.compare(model, model, batches, layers_a="leaves")
    assert np.array_equal(np.diag(alone.cka), np.ones(7))
    assert_close(alone.cka, twice.cka, REORDERED)


@pytest.fixture(scope="module")
def noise():
    """An untrained ResNet whose last norms are not zero, on noise; all leaves, float64 truth."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", zero_init_last=False).eval()
    x = torch.randn(16, 3, 48, 48)
    return model, x, defined(model, model, [x])


@pytest.mark.parametrize("operand", ["fp32", "fp16", "bf16"])
def test_an_untrained_resnet_on_noise_is_right(noise, operand):
    model, x, expected = noise
    result = fastcka.compare(model, data=[x], layers_a="leaves", operand=operand)
    assert len(result.layers_a) == 61
    assert_close(result.cka, expected, OPERAND[operand])


def test_many_models_give_what_each_pair_gives():
    models = {"a": net(), "b": net(seed=1), "c": net(seed=2, width=3)}
    batches = images(48).split(16)
    results = fastcka.compare_many(models, batches, layers={"a": "leaves", "c": ["0", "3"]})
    assert list(results) == [("a", "a"), ("a", "b"), ("a", "c"), ("b", "b"), ("b", "c"), ("c", "c")]
    pair = fastcka.compare(
        models["a"], models["c"], batches, layers_a="leaves", layers_b=["0", "3"]
    )
    assert_close(results["a", "c"].cka, pair.cka, REORDERED)
    assert results["b", "c"].meta["models"]["b"]["class"] == "torch.nn.modules.container.Sequential"


@pytest.mark.parametrize(("batch", "sizes"), [(32, [32]), (16, [16, 16])])
@pytest.mark.parametrize("tail", [1, 2, 3])
def test_tails_below_four_are_left_out_and_counted(batch, sizes, tail):
    x = images(32 + tail)
    with pytest.warns(CKAWarning, match="1 batch of fewer than 4 examples was left out"):
        result = fastcka.compare(net(), data=x.split(batch), layers_a="leaves")
    whole = fastcka.compare(net(), data=x[:32].split(batch), layers_a="leaves")
    assert np.array_equal(result.cka, whole.cka)
    assert result.n_batches == len(sizes)
    assert result.meta["skipped_examples"] == tail


def test_a_tail_of_four_counts():
    x = images(36)
    result = fastcka.compare(net(), data=x.split(32), layers_a="leaves")
    assert (result.n_batches, result.n_examples) == (2, 36)
    assert_close(result.cka, defined(net(), net(), x.split(32)), CKA)


def test_a_short_first_batch_is_left_out_too():
    x = images(34)
    with pytest.warns(CKAWarning, match="left out"):
        result = fastcka.compare(net(), data=[x[:2], x[2:18], x[18:]], layers_a="leaves")
    expected = fastcka.compare(net(), data=[x[2:18], x[18:]], layers_a="leaves")
    assert np.array_equal(result.cka, expected.cka)


def test_the_forward_batch_may_be_several_cka_batches():
    x, model = images(56), net()
    found = fastcka.compare(model, data=x.split(24), layers_a="leaves", n=12)
    expected = fastcka.compare(model, data=x.split(12), layers_a="leaves")
    assert found.n_batches == expected.n_batches == 5
    assert_close(found.cka, expected.cka, CKA)
    assert_close(found.stderr, expected.stderr, CKA)


def test_passes_sharpen_nothing_that_is_the_same():
    x, model = images(60), net()
    once = fastcka.compare(model, data=x.split(20), layers_a="leaves")
    twice = fastcka.compare(model, data=x.split(20), layers_a="leaves", passes=2)
    assert twice.n_batches == 6
    assert_close(twice.cka, once.cka, REORDERED)
    assert_close(twice.stderr, once.stderr, FLOAT64)


def test_two_runs_give_the_same_bits():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    first, second = (
        fastcka.compare(model, net(size=32), images(40, 32).split(20), layers_a="leaves")
        for _ in range(2)
    )
    assert first.cka.tobytes() == second.cka.tobytes()
    assert first.stderr.tobytes() == second.stderr.tobytes()


def test_options_reach_the_sums():
    batches = images(40).split(20)
    result = fastcka.compare(
        net(), data=batches, layers_a=["0"], layers_b=None, estimator="biased", gram="rbf",
        bandwidth=0.5, weighting="equal", operand="fp16", backend="torch",
    )  # fmt: skip
    chosen = {"estimator": "biased", "gram": "rbf", "bandwidth": 0.5, "weighting": "equal"}
    assert chosen.items() <= result.meta.items()
    assert (result.meta["operand"], result.meta["backend"]) == ("fp16", "torch")


def test_a_tap_is_what_it_says():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    x = images(24, 32)
    result = fastcka.compare(
        vit, data=[x], layers_a=[Tap("blocks.*", tokens="cls"), Tap("blocks.1", tokens="gap")]
    )
    assert result.layers_a == ("blocks.0[cls]", "blocks.1[cls]", "blocks.1[gap]")
    one, two = activations(vit, x, "blocks")
    assert result.cka[0, 2] == pytest.approx(defined_cka(one[:, 0], two[:, 1:].mean(1)), abs=CKA)


# The data


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
    folder = fastcka.data.write_images(tmp_path, 24, size=16)
    make = lambda: fastcka.data.ImageBatches(folder, {"x": to_tensor}, batch_size=8)  # noqa: E731
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


# How models are left


def test_models_are_left_as_they_came():
    model = net()
    model.train()
    model[1].eval()  # a frozen norm
    before = copy.deepcopy(model.state_dict())
    fastcka.compare(model, data=images(20).split(10), layers_a="leaves")
    assert [m.training for m in model] == [True, False, True, True, True, True, True]
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_gradients_are_kept():
    model, seen = net(), []
    model[3].register_forward_hook(lambda m, args, output: seen.append(output.requires_grad))
    fastcka.compare(model, data=[images(8)], layers_a=["0"])
    assert seen == [False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_was_moved_is_moved_back(fails, monkeypatch):
    model, moves = net(), []
    monkeypatch.setattr(model, "to", lambda device: moves.append(str(device)))
    data = [torch.ones(8, 4, 8, 8)] if fails else [images(8)]
    try:
        fastcka.compare(model, data=data, layers_a=["0"], device="cpu:0")
        assert not fails
    except RuntimeError:
        assert fails
    assert moves == ["cpu:0", "cpu"]


@pytest.mark.gpu
def test_a_gpu_gives_the_number_of_the_cpu():
    batches = images(48).split(16)
    expected = fastcka.compare(net(), net(seed=1), batches, layers_a="leaves")
    found = fastcka.compare(net(), net(seed=1), batches, layers_a="leaves", device="cuda")
    assert found.meta["models"]["a"]["device"].startswith("cuda")
    assert_close(found.cka, expected.cka, 1e-3)  # convolutions round to TF32 there


def test_training_mode_does_not_change_the_number():
    evaluating = fastcka.compare(net(), data=[images(20)], layers_a="leaves")
    training = fastcka.compare(net().train(), data=[images(20)], layers_a="leaves")
    assert np.array_equal(evaluating.cka, training.cka)


def test_an_exception_leaves_the_model_clean():
    model = net().train()

    def batches():
        yield images(8)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fastcka.compare(model, data=batches(), layers_a="leaves")
    assert model.training
    assert all(m.training and not m._forward_hooks for m in model.modules())
    copy.deepcopy(model)
    with pytest.raises(RuntimeError) as caught:
        fastcka.compare(model, data=[images(8), torch.randn(8, 4, 8, 8)], layers_a="leaves")
    assert caught.value.__notes__ == ["model 'a' was running batch 1, given float32 [8, 4, 8, 8]"]
    assert model.training
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_what_was_measured_before_an_error_is_not_lost(error):
    model, x = net(), images(40)

    def batches():
        yield from x.split(20)
        raise error

    with pytest.raises(type(error)) as caught:
        fastcka.compare(model, data=batches(), layers_a="leaves")
    whole = fastcka.compare(model, data=x.split(20), layers_a="leaves")
    assert np.array_equal(caught.value.partial.cka, whole.cka)
    assert caught.value.partial.n_batches == 2
    with pytest.raises(ZeroDivisionError) as caught:
        fastcka.compare_many({"m": model}, (1 / 0 for _ in range(2)))
    assert not hasattr(caught.value, "partial")


def test_autocast_runs_the_model_in_16_bits_and_measures_what_it_gives():
    model, x = net(), images(20)
    types = set()
    model[3].register_forward_hook(lambda m, i, o: types.add(o.dtype))
    result = fastcka.compare(model, data=[x], layers_a=["0", "3"], autocast="bf16")
    assert types == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (activations(model, x)[i] for i in (0, 3))
    assert result.cka[0, 1] == pytest.approx(defined_cka(first, second), abs=CKA)
    assert result.meta["autocast"] == "bf16"


# What is told


def labelled(count=64, classes=4):
    return images(count), torch.arange(count) * classes // count


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

    data = fastcka.data.ImageBatches(tmp_path, {"x": to_tensor}, batch_size=24)
    ours = cka(data)
    [whole] = fastcka.data.ImageBatches(tmp_path, {"x": to_tensor}, batch_size=96)
    order = whole["index"].argsort()
    by_class = whole["views"]["x"][order].split(24)
    shuffled = cka([{"views": {"x": whole["views"]["x"]}}])
    in_order = cka([{"views": {"x": x}} for x in by_class])
    assert abs(ours - shuffled) < 0.05
    assert abs(in_order - shuffled) > 0.3


def test_layers_without_a_value_are_named_once():
    model = net()
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    with pytest.warns(CKAWarning) as told:
        result = fastcka.compare(model, data=images(40).split(20), layers_a="leaves")
    assert len(told) == 1
    assert result.warnings == (str(told[0].message),)
    assert result.warnings[0].startswith("layers '3', '4', '5', '6' are constant")
    assert np.isnan(result.cka[3]).all()


def test_the_result_says_how_it_came_about():
    a, data = net(), DataLoader(
        TensorDataset(images(40)), 20, shuffle=True, generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    meta = fastcka.compare(a, net(seed=1), data, layers_a=["0"], n=10).meta
    assert meta["models"]["a"] == {
        "name": "Sequential",
        "class": "torch.nn.modules.container.Sequential",
        "parameters": sum(p.numel() for p in a.parameters()),
        "device": "cpu",
    }
    assert meta["data"] == {
        "type": "DataLoader",
        "dataset": "TensorDataset",
        "sampler": "RandomSampler",
        "batch_size": 20,
    }
    assert (meta["n"], meta["passes"], meta["autocast"]) == (10, 1, None)
    assert meta["versions"]["timm"] == timm.__version__
    assert meta["threads"] == torch.get_num_threads()


def test_nothing_is_printed_where_the_output_is_no_terminal(capsys):
    fastcka.compare(net(), data=[images(8)], layers_a=["0"])
    assert capsys.readouterr() == ("", "")
