"""Taking activations while a network runs."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastcka.capture.matching import Wanted, few, find
from fastcka.capture.modules import named, uncompiled, unwrap
from fastcka.capture.selection import Unusable, layout_of, take
from fastcka.capture.tensors import READABLE, activation

Sink = Callable[[str, torch.Tensor], None]


class Capture:
    """The layers of one network, and the hooks that hand over their activations.

    An activation goes to a function inside the hook of its module, before anything can overwrite
    it, and nothing of it is kept. Which layers there are is seen in the first forward pass: modules
    that are never called, or return no activations, are left out and named in `notices`; a module
    that is called several times is a layer each time, `name`, `name#2`, ….

    Args:
        model: any network; compiled and data-parallel ones are unwrapped.
        layers: names, globs, module types, Taps, "blocks", "leaves", "raghu", or a list of these.
        label: what the network is called in messages.

    Raises:
        TypeError, ValueError: `layers` names what the network does not have.

    >>> capture = Capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "leaves")
    >>> shapes = {}
    >>> def sink(layer, x):
    ...     shapes[layer] = list(x.shape)
    >>> _ = capture.run(lambda net: net(torch.zeros(5, 8)), 5, sink)
    >>> capture.layers, shapes
    (('0', '1'), {'0': [5, 4], '1': [5, 4]})
    """

    def __init__(self, model: nn.Module, layers="blocks", label: str = "a"):
        self.model, self.label = unwrap(model), label
        self._modules = named(self.model)
        self._wanted = find(layers, self._modules, label)
        chosen = {wanted.name for wanted in self._wanted if wanted.tap.chooses}
        self._layouts = {name: layout_of(name, self._modules) for name in chosen}
        self.layers: tuple[str, ...] | None = None  # known after the first forward pass
        self.notices: tuple[str, ...] = ()
        self._rejected: dict[str, tuple[str, str]] = {}  # by layer: in short, and in full

    def run(self, forward: Callable[[nn.Module], object], n: int, sink: Sink):
        """Call `forward(model)`, with hooks that call `sink(layer, activation)` for n examples.

        Returns what `forward` returns. The hooks are gone afterwards, whatever happens.

        Raises:
            ValueError: a layer asked for by name is never called or has no activations; no layer
                has any; or a later pass calls other layers than the first.
        """
        with self.watching(n, sink):
            return forward(self.model)

    @contextmanager
    def watching(self, n: int, sink: Sink) -> Iterator[None]:
        """As `run`, around one forward pass: several captures can watch the same."""
        run = _Run(self, n, sink)
        handles = []
        try:
            for side, hook in (("output", run.after), ("input", run.before)):
                for module, places in self._places(side).items():
                    register = (
                        module.register_forward_hook
                        if side == "output"
                        else module.register_forward_pre_hook
                    )
                    handles.append(register(hook(places), with_kwargs=True))
            with uncompiled():
                yield
        finally:
            for handle in handles:
                handle.remove()
        if self.layers is None:
            self._settle(run)
            return
        missing = [name for name in self.layers if name not in run.order]
        if missing:
            raise ValueError(
                f"layer {missing[0]!r} of model {self.label!r} was called in the first batch, "
                "but not in this one; compare layers that every forward pass calls"
            )

    @property
    def wanted(self) -> list[str]:
        """The layers asked for, by name; what a forward pass makes of them are `layers`."""
        return [wanted.layer for wanted in self._wanted]

    def puts_examples_second(self, name: str) -> bool:
        """Whether the module, one around it or a part of it works on [tokens, examples, …]."""
        near = [self._modules[name], *self._modules[name].children()]
        while name:
            name = name.rpartition(".")[0]
            near.append(self._modules[name])
        return any(getattr(module, "batch_first", None) is False for module in near)

    def _places(self, side: str) -> dict[nn.Module, list[Wanted]]:
        places: dict[nn.Module, list[Wanted]] = {}
        for wanted in self._wanted:
            if wanted.tap.side == side:
                places.setdefault(self._modules[wanted.name], []).append(wanted)
        return places

    def _settle(self, run: "_Run") -> None:
        """Fix the layers and their order after the first pass."""
        for wanted in self._wanted:
            if wanted.explicit and not run.found[wanted]:
                self._explain_absence(wanted, run)
        if not run.order:
            reasons = [full for _, full in self._rejected.values()]
            reasons.append("no forward pass calls them, or not as often as `call` says")
            raise ValueError(
                f"model {self.label!r} has no activations for the {len(self._wanted)} layers asked "
                f"for: {reasons[0]}"
            )
        if all(wanted.explicit for wanted in self._wanted):
            self.layers = tuple(dict.fromkeys(wanted.layer for wanted in self._wanted))
        else:
            self.layers = tuple(run.order)
        self.notices = tuple(self._tell(run))

    def _explain_absence(self, wanted: Wanted, run: "_Run") -> None:
        name = wanted.layer
        if name in self._rejected:
            raise ValueError(
                f"layer {name!r} of model {self.label!r} cannot be taken: {self._rejected[name][1]}"
            )
        calls = run.calls[self._modules[wanted.name], wanted.tap.side]
        if calls:
            raise ValueError(
                f"layer {name!r} of model {self.label!r} does not exist: a forward pass calls the "
                f"module {calls} times"
            )
        raise ValueError(
            f"layer {name!r} of model {self.label!r} exists, but the network never calls it in a "
            "forward pass; tap the module around it"
        )

    def _tell(self, run: "_Run"):
        silent = [w.name for w in self._wanted if not run.calls[self._modules[w.name], w.tap.side]]
        if silent:
            yield f"model {self.label!r} never calls {few(silent)}; left out"
        for reason in dict.fromkeys(short for short, _ in self._rejected.values()):
            names = [name for name, (short, _) in self._rejected.items() if short == reason]
            yield f"{few(names)} of model {self.label!r} left out: {reason}"
        first = {}
        for name, module in self._modules.items():
            first.setdefault(module, name)
        for wanted in self._wanted:
            module = self._modules[wanted.name]
            calls = run.calls[module, wanted.tap.side]
            if wanted.explicit and wanted.tap.call is None and calls > 1:
                shared = first[module]
                which = "" if shared == wanted.name else f", which is {shared!r},"
                yield (
                    f"model {self.label!r} calls {wanted.name!r}{which} {calls} times in a forward "
                    f"pass; this is its first call, the next is '{shared}#2'"
                )


class _Run:
    """One forward pass: counts the calls, and hands over what is wanted."""

    def __init__(self, capture: Capture, n: int, sink: Sink):
        self.capture, self.n, self.sink = capture, n, sink
        self.calls: Counter = Counter()  # of (module, side)
        self.found: Counter = Counter()  # layers of each wanted tap
        self.order: dict[str, str] = {}  # layers as they came: the name of each one's module

    def after(self, places: list[Wanted]):
        def hook(module, args, kwargs, output):
            self._called(module, "output", places, output)

        return hook

    def before(self, places: list[Wanted]):
        def hook(module, args, kwargs):
            self._called(module, "input", places, (args, kwargs))

        return hook

    def _called(self, module: nn.Module, side: str, places: list[Wanted], nested) -> None:
        self.calls[module, side] += 1
        call = self.calls[module, side]
        for wanted in places:
            if call == (wanted.tap.call or (1 if wanted.explicit else call)):
                self._take(wanted, wanted.tap.layer_of(wanted.name, call), nested)

    def _take(self, wanted: Wanted, name: str, nested) -> None:
        capture = self.capture
        if name in self.order:  # of another tap that means the same
            if self.order[name] != wanted.name:
                raise ValueError(
                    f"two layers of model {capture.label!r} are called {name!r}: a call of "
                    f"{self.order[name]!r}, and {wanted.name!r}; tap them one at a time"
                )
            self.found[wanted] += 1
            return
        if name in capture._rejected:
            return
        if capture.layers is not None and name not in capture.layers:
            raise ValueError(
                f"layer {name!r} of model {capture.label!r} was not called in the first batch, "
                "but is in this one; compare layers that every forward pass calls"
            )
        try:
            self._hand_over(wanted, name, activation(nested))
        except Unusable as unusable:
            if capture.layers is not None:
                raise ValueError(
                    f"layer {name!r} of model {capture.label!r} could be taken in the first batch, "
                    f"but not in this one: {unusable}"
                ) from unusable
            capture._rejected[name] = (unusable.reason, str(unusable))

    def _hand_over(self, wanted: Wanted, name: str, x: torch.Tensor | None) -> None:
        if x is None:
            raise Unusable("no floating tensor comes out of it")
        if x.is_nested or x.is_meta or x.layout != torch.strided or x.dtype not in READABLE:
            kind = "nested" if x.is_nested else f"{x.layout}, {x.dtype} on {x.device}"
            raise Unusable(f"its activation is no dense floating tensor, but {kind}")
        # What is computed in here is no part of the network that autocast was meant for.
        with torch.autocast(x.device.type, enabled=False):
            x = x.detach()
            if wanted.tap.chooses:
                x = take(x, wanted.tap, self.capture._layouts[wanted.name])
            self._check(x, wanted)
            self.order[name] = wanted.name
            self.found[wanted] += 1
            self.sink(name, x)

    def _check(self, x: torch.Tensor, wanted: Wanted) -> None:
        if x.ndim < 2 or x.shape[0] != self.n:
            raise Unusable(f"its first axis is not the {self.n} examples of the batch", x.shape)
        if x.numel() == 0:
            raise Unusable("it is empty", x.shape)
        if x.ndim > 2 and x.shape[1] == self.n and self.capture.puts_examples_second(wanted.name):
            raise Unusable(
                f"with batch_first=False and as many tokens as examples, {self.n}, its axes cannot "
                "be told apart: choose another batch size"
            )
