"""Hooks: what they see, whatever the network does, and that nothing of them stays."""

import copy
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastcka.capture import Capture, Tap


def capture(model, layers, x, label="a"):
    """The layers of one forward pass, as copies, and the capture."""
    taken = {}
    hooks = Capture(model, layers, label)
    with torch.no_grad():
        hooks.run(lambda net: net(x), x.shape[0], lambda name, a: taken.update({name: a.clone()}))
    return taken, hooks


class Residual(nn.Module):
    """One ReLU used twice, in place, and a sum in place: what overwrites activations."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace)
        self.inplace = inplace

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.relu(out)


class Returning(nn.Module):
    """Returns what `wrap` makes of its output."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


class Around(nn.Module):
    def __init__(self, inner, out=lambda y: y):
        super().__init__()
        self.inner, self.out = inner, out

    def forward(self, x):
        return self.out(self.inner(x))


@dataclass
class Output:
    mask: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor | None = None


def test_in_place_operations_change_nothing():
    torch.manual_seed(1)
    model = Residual(inplace=False).eval()
    twin = Residual(inplace=True).eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(6, 3, 8, 8)
    expected, _ = capture(model, "leaves", x)
    found, _ = capture(twin, "leaves", x)
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert (found["bn1"] < 0).any()


def test_calls_of_one_module_are_layers_of_their_own():
    taken, hooks = capture(Residual().eval(), "**", torch.randn(5, 3, 8, 8))
    assert hooks.layers == ("conv1", "bn1", "relu", "conv2", "bn2", "relu#2")
    assert not torch.equal(taken["relu"], taken["relu#2"])
    assert hooks.notices == ()


def test_a_name_is_its_first_call_and_says_that_there_are_more():
    _, hooks = capture(Residual().eval(), "relu", torch.ones(5, 3, 8, 8))
    assert hooks.layers == ("relu",)
    assert hooks.notices == (
        "model 'a' calls 'relu' 2 times in a forward pass; this is its first call, "
        "the next is 'relu#2'",
    )
    _, hooks = capture(Residual().eval(), ["relu#2"], torch.ones(5, 3, 8, 8))
    assert hooks.layers == ("relu#2",)


def test_names_keep_their_order_and_globs_come_as_executed():
    x, model = torch.randn(5, 3, 8, 8), Residual().eval()
    assert capture(model, ["conv2", "conv1"], x)[1].layers == ("conv2", "conv1")
    assert capture(model, ["conv2", "bn*", "conv1"], x)[1].layers == (
        "conv1",
        "bn1",
        "conv2",
        "bn2",
    )
    assert capture(model, [nn.BatchNorm2d, "conv?"], x)[1].layers == (
        "conv1",
        "bn1",
        "conv2",
        "bn2",
    )


def test_two_names_of_one_module():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    model.add_module("again", model.first)
    x = torch.randn(5, 4)
    assert capture(model, "**", x)[1].layers == ("first", "first#2")
    taken, hooks = capture(model, ["again", "first#2"], x)
    assert hooks.layers == ("again", "first#2")
    assert torch.equal(taken["again"], model.first(x))


Named = namedtuple("Named", "ids values")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, None),
        lambda y: [torch.ones(2, dtype=torch.long), y],
        lambda y: {"mask": torch.ones(2, dtype=torch.bool), "hidden": (y, y + 1)},
        lambda y: Output(torch.ones(5, dtype=torch.bool), y),
        lambda y: Named(torch.arange(5), y),
    ],
    ids=["tuple", "list", "dict", "dataclass", "namedtuple"],
)
def test_the_first_floating_tensor_is_the_activation(wrap):
    model = Around(Returning(wrap))
    x = torch.randn(5, 4)
    taken, _ = capture(model, ["inner"], x)
    assert torch.equal(taken["inner"], model.inner.body(x))


def test_inputs_are_taken_by_position_and_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(input=2 * x)

    x = torch.randn(5, 4)
    taken, hooks = capture(Keyword(), [Tap("fc", side="input"), "fc"], x)
    assert hooks.layers == ("fc input", "fc")
    assert torch.equal(taken["fc input"], 2 * x)


def test_modules_that_are_never_called_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].unused = nn.Linear(2, 2)
    _, hooks = capture(model, "**", torch.randn(5, 4))
    assert hooks.layers == ("0", "1")
    assert hooks.notices == ("model 'a' never calls '0.unused'; left out",)
    with pytest.raises(ValueError, match=r"'0.unused' of model 'b' exists, but the network never"):
        capture(model, ["0.unused"], torch.randn(5, 4), "b")
    with pytest.raises(
        ValueError, match=r"'1#2' of model 'a' does not exist: .* the module 1 times"
    ):
        capture(model, ["1#2"], torch.randn(5, 4))


def test_outputs_that_are_no_activations_are_named():
    model = nn.Sequential(nn.Linear(4, 4), Returning(lambda y: y.argmax(1)))
    x = torch.randn(5, 4)
    _, hooks = capture(model, "*", x)
    assert hooks.layers == ("0",)
    assert hooks.notices == ("'1' of model 'a' left out: no floating tensor comes out of it",)
    with pytest.raises(ValueError, match="'1' of model 'a' cannot be taken: no floating tensor"):
        capture(model, ["1"], x)
    with pytest.raises(
        ValueError, match="'a' has no activations for the 1 layers asked for: no fl"
    ):
        capture(model, Tap("[1]"), x)


def test_an_activation_whose_first_axis_is_not_the_examples_is_left_out():
    model = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (5, 4)))
    _, hooks = capture(model, "*", torch.randn(5, 4))
    assert hooks.layers == ("1",)
    assert hooks.notices == (
        "'0' of model 'a' left out: its first axis is not the 5 examples of the batch",
    )
    with pytest.raises(ValueError, match=r"of the batch; its shape is \[20\]"):
        capture(model, ["0"], torch.randn(5, 4))


def test_a_pass_that_calls_other_layers_is_an_error():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.flag = nn.ReLU(), nn.ReLU(), True

        def forward(self, x):
            return self.a(x) if self.flag else self.b(self.b(x))

    model = Fickle()
    hooks = Capture(model, "*")
    sink = lambda name, x: None  # noqa: E731
    hooks.run(lambda net: net(torch.ones(4, 2)), 4, sink)
    model.flag = False
    with pytest.raises(ValueError, match="'b' of model 'a' was not called in the first batch"):
        hooks.run(lambda net: net(torch.ones(4, 2)), 4, sink)
    hooks = Capture(model, ["b"])
    hooks.run(lambda net: net(torch.ones(4, 2)), 4, sink)
    model.flag = True
    with pytest.raises(ValueError, match="'b' of model 'a' was called in the first batch, but not"):
        hooks.run(lambda net: net(torch.ones(4, 2)), 4, sink)


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_exception():
    model = Residual().eval()
    with pytest.raises(ValueError, match="not today"):
        Capture(model, "leaves").run(lambda net: net(torch.ones(4, 3, 8, 8)), 4, _raise)
    assert hooks_left(model) == 0
    copy.deepcopy(model)


def _raise(name, x):
    if name == "bn2":
        raise ValueError("not today")


def test_the_output_of_the_network_is_its_own():
    model = Residual().eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        returned = Capture(model, "**").run(lambda net: net(x), 4, lambda name, a: None)
        assert torch.equal(returned, model(x))


@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "block"])
def test_compiled_networks_are_seen(how):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    plain, x = copy.deepcopy(model), torch.randn(6, 4)
    backend = {"backend": "eager"}
    if how == "torch.compile":
        model = torch.compile(model, **backend)
    elif how == "model.compile":
        model.compile(**backend)
    else:
        model[1] = torch.compile(model[1], **backend)
    with torch.no_grad():
        model(x)  # compiled before there are hooks
    expected, _ = capture(plain, "leaves", x)
    found, _ = capture(model, "leaves", x)
    assert list(found) == list(expected) == ["0", "1", "2"]
    for name in expected:
        assert torch.equal(found[name], expected[name])


def test_data_parallel_networks_are_unwrapped():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert capture(nn.DataParallel(model), "leaves", torch.randn(5, 4))[1].layers == ("0", "1")


def test_autocast_reaches_the_network_and_not_what_is_taken():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    seen = {}

    def sink(name, x):
        seen[name] = (x.dtype, torch.is_autocast_enabled("cpu"), (x.float() @ x.float().T).dtype)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        Capture(model, "leaves").run(lambda net: net(torch.ones(5, 4)), 5, sink)
    assert seen == dict.fromkeys("01", (torch.bfloat16, False, torch.float32))


def test_slices_and_functions_are_layers_of_their_own():
    def first(x):
        return x[:, :2]

    def last(x):
        return x[:, 2:]

    x, model = torch.randn(5, 4), nn.Sequential(nn.Linear(4, 4))
    taps = [Tap("0", select=slice(0, 2)), Tap("0", select=first), Tap("0", select=last)]
    taken, hooks = capture(model, taps, x)
    assert hooks.layers == ("0[0:2]", "0[first]", "0[last]")
    assert torch.equal(taken["0[0:2]"], taken["0[first]"])
    with pytest.raises(ValueError, match=r"two taps would both be called '0\[<lambda>\]'"):
        capture(model, [Tap("0", select=lambda x: x), Tap("0", select=lambda x: 2 * x)], x)


def test_a_module_named_like_a_second_call_is_not_lost():
    model = nn.Sequential()
    model.add_module("relu", nn.ReLU())
    model.add_module("relu#2", nn.Sigmoid())
    model.add_module("again", model.relu)
    assert capture(model, ["relu", "relu#2"], torch.randn(5, 4))[1].layers == ("relu", "relu#2")
    with pytest.raises(ValueError, match="two layers of model 'a' are called 'relu#2'"):
        capture(model, "*", torch.randn(5, 4))


def test_a_name_of_a_module_that_has_another_says_so():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    model.add_module("again", model.first)
    [notice] = capture(model, ["again"], torch.randn(5, 4))[1].notices
    assert "calls 'again', which is 'first', 2 times in a forward pass" in notice


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y.to_sparse(),
        lambda y: torch.nested.as_nested_tensor(list(y), layout=torch.jagged),
        lambda y: y.to(torch.float8_e4m3fn),
        lambda y: y.to("meta"),
        lambda y: y.to(torch.complex64),
    ],
    ids=["sparse", "nested", "float8", "meta", "complex"],
)
def test_what_no_gram_matrix_is_made_of_is_left_out(wrap):
    model = nn.Sequential(nn.Linear(4, 4), Around(Returning(wrap), lambda y: torch.ones(5, 2)))
    _, hooks = capture(model, "**", torch.randn(5, 4))
    assert hooks.layers == ("0", "1.inner.body", "1")
    assert "'1.inner' of model 'a' left out" in hooks.notices[0]


def test_tokens_are_not_taken_for_examples():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=False).eval()
    with pytest.raises(ValueError, match="with batch_first=False and as many tokens as exam"):
        capture(Around(layer), ["inner"], torch.randn(6, 6, 8))
    sensible = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert capture(Around(sensible), ["inner"], torch.randn(6, 6, 8))[1].layers == ("inner",)


def test_hooks_of_the_user_still_fire():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []
    model[0].register_forward_hook(lambda m, args, out: seen.append(1) or out + 1)
    taken, _ = capture(model, "leaves", torch.zeros(5, 4))
    assert torch.equal(taken["0"], model[0].bias.expand(5, 4) + 1)
    capture(model, "leaves", torch.zeros(5, 4))
    assert len(seen) == 2


def test_a_compiled_forward_is_run_as_it_was_written():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.randn(5, 4)
    model.forward = torch.compile(model.forward, backend="eager")
    with torch.no_grad():
        model(x)
    assert capture(model, "leaves", x)[1].layers == ("0", "1")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_part_is_no_obstacle():
    with torch.no_grad():
        traced = torch.jit.trace(nn.Linear(4, 4), torch.randn(5, 4))
    model = nn.Sequential(traced, nn.Linear(4, 2))
    assert capture(model, ["1"], torch.randn(5, 4))[1].layers == ("1",)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["DDP", "fully_shard"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_distributed_networks_are_seen_as_they_are(how, one_process):
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(6, 4)
    expected, _ = capture(plain, "leaves", x)
    if how == "DDP":
        model = nn.parallel.DistributedDataParallel(plain)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = fully_shard(copy.deepcopy(plain), mesh=init_device_mesh("cpu", (1,)))
    found, _ = capture(model, "leaves", x)
    assert list(found) == ["0", "1", "2"]
    for name in expected:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("name", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_parts_are_not_part_of_a_name(name):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.add_module(name, inner)

        def forward(self, x):
            return getattr(self, name)(x)

    model = Wrapper(nn.Sequential(Wrapper(nn.Linear(4, 4)), nn.ReLU()))
    assert capture(model, "**", torch.randn(5, 4))[1].layers == ("0", "1")
