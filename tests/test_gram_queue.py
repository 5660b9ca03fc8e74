"""On a CPU nothing waits by itself: these tests make it wait."""

import pytest
import torch
from tolerance import CKA, REORDERED, assert_close
from torch import nn

from fastcka import MinibatchCKA, compare, compare_many, gram_queue
from fastcka.gram_queue import GramQueue
from fastcka.gram_stack import GramStack
from fastcka.kernels import dispatch


@pytest.fixture
def waiting(monkeypatch):
    """Every layer waits; returns the layers of each launch."""
    launches = []
    together = GramStack.put_together

    def seen(entries):
        launches.append([stack.layers[row] for stack, row, _ in entries])
        together(entries)

    monkeypatch.setattr(gram_queue, "on_gpu", lambda x: True)
    # By name, as on a GPU where torch comes first.
    monkeypatch.setattr(dispatch, "ORDER", {"cpu": ("torch", "native")})
    monkeypatch.setattr(GramStack, "put_together", staticmethod(seen))
    return launches


def net(inplace=True, width=6):
    parts = [nn.Conv2d(3, width, 3), nn.ReLU(inplace), nn.Conv2d(width, 4, 3), nn.ReLU(inplace)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * 16, 10))


def images(count=60):
    return torch.randn(count, 3, 8, 8)


def matrices(batches, **options):
    torch.manual_seed(1)
    model = net(**options.pop("net", {}))
    options = {"backend": "native"} | options
    return compare(model, data=batches, layers_a="leaves", progress=False, **options)


@pytest.mark.parametrize("n", [None, 5])
@pytest.mark.parametrize("gram", ["linear", "rbf"])
def test_layers_that_waited_give_what_layers_give_at_once(waiting, monkeypatch, n, gram):
    batches = images().split(20)
    together = matrices(batches, n=n, gram=gram)
    assert waiting
    with monkeypatch.context() as patch:
        patch.setattr(gram_queue, "on_gpu", lambda x: False)
        apart = matrices(batches, n=n, gram=gram)
    assert_close(together.cka, apart.cka, REORDERED)
    assert_close(together.stderr, apart.stderr, 1e-9)


def test_what_is_overwritten_in_place_does_not_wait(waiting):
    batches = images().split(20)
    result = matrices(batches)
    assert_close(result.cka, matrices(batches, net={"inplace": False}).cka, REORDERED)
    # The results of the convolutions are overwritten by the activations behind them.
    assert waiting[:2] == [["1", "3", "4", "5"]] * 2


def test_a_small_budget_empties_the_queue_after_the_same_layers_in_every_batch(
    waiting, monkeypatch
):
    monkeypatch.setattr(GramQueue.__init__, "__defaults__", (2 * 20 * (4 * 16 * 4 + 8 * 20),))
    matrices([*images(60).split(20), images(8)], net={"inplace": False})
    assert len(set(map(tuple, waiting))) == len(waiting) / 3 > 1
    assert sorted(layer for launch in waiting[: len(waiting) // 3] for layer in launch) == [
        "0", "1", "2", "3", "4", "5"
    ]  # fmt: skip


def test_one_launch_holds_all_parts_of_a_batch(waiting):
    matrices(images(40).split(20), n=5, net={"inplace": False})
    assert [len(launch) for launch in waiting] == [4 * 6]


class Later(nn.Module):
    """Overwrites what its first layer returned, from the second batch on."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(8, 6), nn.Linear(6, 4), 0

    def forward(self, x):
        hidden = self.first(x)
        out = self.second(hidden)
        self.calls += 1
        if self.calls > 1:
            hidden.zero_()
        return out


def test_an_activation_that_is_overwritten_unexpectedly_is_an_error(waiting):
    options = {"layers_a": "leaves", "progress": False, "backend": "native"}
    with pytest.raises(RuntimeError, match="'first' was overwritten in place before it was"):
        compare(Later(), data=torch.randn(30, 8).split(10), **options)


def test_a_layer_that_cannot_be_reduced_is_named(waiting):
    queue, stack = GramQueue(), GramStack(["wide", "bad"], 4, backend="native")
    queue.put(stack, 0, torch.randn(4, 3))
    with pytest.raises(ValueError, match="layer 'bad' has 5 examples"):
        queue.put(stack, 1, torch.randn(5, 3))


def test_several_networks_have_a_queue_each(waiting):
    torch.manual_seed(2)
    nets = {"thin": net(width=4), "wide": net(width=8)}
    batches = images().split(20)
    results = compare_many(nets, batches, layers="leaves", progress=False, backend="native")
    assert [len(launch) for launch in waiting] == [4] * 4  # of two networks in two batches
    options = {"layers_a": "leaves", "progress": False, "backend": "native"}
    alone = compare(nets["wide"], data=batches, **options)
    assert_close(results["wide", "wide"].cka, alone.cka, REORDERED)


class Inference(nn.Module):
    """Whose activations have no version."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))

    def forward(self, x):
        with torch.inference_mode():
            return self.body(x)


def test_what_does_not_say_whether_it_was_overwritten_does_not_wait(waiting):
    options = {"layers_a": "leaves", "progress": False, "backend": "native"}
    compare(Inference(), data=torch.randn(60, 8).split(20), **options)
    assert not waiting


def test_where_torch_reduces_nothing_waits(waiting):
    matrices(images().split(20), backend="torch")
    matrices(images().split(20), backend=None)
    assert not waiting


@pytest.mark.gpu
def test_on_a_gpu_layers_wait_for_one_launch_and_give_what_torch_gives():
    model, batches = net().cuda(), [part.cuda() for part in images(256).split(64)]
    options = {"layers_a": "leaves", "progress": False}
    expected = compare(model, data=batches, backend="torch", **options)
    found = compare(model, data=batches, backend="triton", **options)
    assert_close(found.cka, expected.cka, CKA)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # that it is a prototype
def test_a_batch_is_added_up_without_waiting_for_the_gpu():
    layers = [torch.randn(64, p, device="cuda").half() for p in (768, 5000, 10_000)]
    sums = MinibatchCKA(["a", "b", "c"], backend="triton")
    sums.update(layers)  # compiles
    try:
        torch.cuda.set_sync_debug_mode("error")
        sums.update([x + 1 for x in layers])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.compute().cka.shape == (3, 3)
