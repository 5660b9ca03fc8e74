"""Whole comparisons: the number, what may go wrong on the way, and how models are left."""

import copy
import re

import numpy as np
import pytest
import timm
import torch
from data import defined_cka
from networks import activations, defined, images, net
from tolerance import CKA, FLOAT64, OPERAND, REORDERED, assert_close
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastcka
from fastcka import CKAWarning, Tap
from fastcka.participant import Participant

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


def test_the_error_of_passes_in_new_orders_is_that_of_the_first():
    x, model = images(60), net()

    def loader():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(x), 20, shuffle=True, generator=generator)

    once = fastcka.compare(model, data=loader(), layers_a="leaves")
    often = fastcka.compare(model, data=loader(), layers_a="leaves", passes=3)
    assert (often.stderr == once.stderr).all()
    assert not np.allclose(often.cka, once.cka, atol=1e-6)
    assert (often.meta["n_blocks"], often.n_batches) == (3, 9)
    assert often.measured == "3 passes, together 180 examples in 9 batches, unbiased CKA"


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


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert Participant("a", net(), "leaves", device="cuda").device == torch.device("cuda:1")


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


# Memory


class Small(nn.Module):
    """A network on a device that holds so many images."""

    def __init__(self, network, at_most):
        super().__init__()
        self.network, self.at_most, self.sizes = network, at_most, []

    def forward(self, x):
        if len(x) > self.at_most:
            self.network[:3](x)  # some layers have been captured by then
            x.mul_(2)  # and the input was written to
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        return self.network(x)


@pytest.mark.parametrize("inputs", [None, lambda x: {"x": x}], ids=["tensor", "keywords"])
def test_a_batch_that_does_not_fit_is_run_in_halves_with_the_same_numbers(inputs):
    data = [images(20, seed=4), images(60, seed=1), images(60, seed=2), images(36, seed=3)]
    small = Small(net(), 20)
    with pytest.warns(
        CKAWarning, match="'a' ran out of memory with 60 images: from batch 1"
    ) as told:
        found = fastcka.compare(small, data=data, layers_a="leaves", n=10, input_a=inputs)
    assert [re.search(r"given (\d+) at a time", str(one.message))[1] for one in told] == [
        "30",
        "20",
    ]
    assert small.sizes == [20] * 7 + [20, 16]
    expected = fastcka.compare(net(), data=data, layers_a="leaves", n=10)
    assert_close(found.cka, expected.cka, CKA)
    assert_close(found.stderr, expected.stderr, CKA)
    assert found.n_batches == expected.n_batches


def test_a_cka_batch_that_does_not_fit_is_told():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fastcka.compare(Small(net(), 8), data=[images(40)], layers_a="leaves", n=10)
    assert any("give a smaller `n`" in note for note in caught.value.__notes__)


def test_captions_beside_images_are_not_cut_in_halves():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fastcka.compare(
            Small(net(), 8), data=[(images(40), ["a word"] * 40)], layers_a="leaves", n=10,
            forward_a=lambda model, batch: model(batch[0]),
        )  # fmt: skip
    assert "model 'a' is given lists, not cut in halves" in caught.value.__notes__


# What is told


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
        TensorDataset(images(40)), 20, shuffle=True, generator=torch.Generator().manual_seed(3)
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
        "batch_size": 20,
        "dataset": "TensorDataset",
        "order": "RandomSampler",
        "seed": 3,
    }
    assert (meta["n"], meta["passes"], meta["autocast"]) == (10, 1, None)
    assert meta["versions"]["timm"] == timm.__version__
    assert meta["threads"] == torch.get_num_threads()


def test_nothing_is_printed_where_the_output_is_no_terminal(capsys):
    fastcka.compare(net(), data=[images(8)], layers_a=["0"])
    assert capsys.readouterr() == ("", "")
