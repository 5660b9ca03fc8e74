"""One model of a comparison: what it is called with, and on which device it runs."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from fastcka.capture import Capture
from fastcka.capture.hooks import Sink
from fastcka.capture.modules import evaluating
from fastcka.capture.tensors import copied_to, mapped, nests, tensors
from fastcka.trail import value_bytes

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Under these names torch and timm have them.
AUTOCAST |= {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Inputs(NamedTuple):
    """What a model is called with, for n examples."""

    args: tuple
    kwargs: dict
    n: int

    @property
    def divisible(self) -> bool:
        """Whether nothing but tensors goes by examples: a list of captions cannot be cut."""
        lists = nests((self.args, self.kwargs))
        return not any(
            len(nest) == self.n and not isinstance(nest[0], torch.Tensor) for nest in lists
        )

    def part(self, start: int, stop: int) -> "Inputs":
        """Of some of the examples: of every tensor that has as many rows as there are examples."""

        def cut(x: torch.Tensor) -> torch.Tensor:
            return x[start:stop] if x.ndim and x.shape[0] == self.n else x

        return Inputs(mapped(self.args, cut), mapped(self.kwargs, cut), stop - start)

    def __str__(self) -> str:
        given = [f"{str(x.dtype)[6:]} {list(x.shape)}" for x in tensors((self.args, self.kwargs))]
        return ", ".join(given)


class Participant:
    """A model, its layers, and how it is called.

    Args:
        label: what messages and the accumulator call it.
        model, layers: as for `Capture`.
        name: what the result calls it; None is the name of its architecture.
        pick: from a batch of the data to what this model sees of it.
        prepare: `input_a` of `compare`.
        forward: `forward_a`, given the whole batch.
        autocast: a 16-bit dtype, or None. device: None is where the model is.
    """

    def __init__(
        self,
        label: str,
        model: nn.Module,
        layers,
        *,
        name: str | None = None,
        pick: Callable | None = None,
        prepare: Callable | None = None,
        forward: Callable | None = None,
        autocast: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.label, self.name, self.model = label, name, model
        self.capture = Capture(model, layers, label)
        self._pick, self._prepare, self._forward = pick, prepare, forward
        self.autocast = autocast
        devices = dict.fromkeys(value.device for value in (*model.parameters(), *model.buffers()))
        if torch.device("meta") in devices:
            raise RuntimeError(f"model {label!r} has no values: it is on the meta device")
        if device is not None and torch.device(device).type == "meta":
            raise RuntimeError("`device` is 'meta', where there are no values")
        if device is not None and len(devices) > 1:
            raise RuntimeError(
                f"model {label!r} is spread over {', '.join(map(str, devices))}; leave out `device`"
            )
        self._home = next(iter(devices), torch.device("cpu"))
        self.device = self._home if device is None else _numbered(torch.device(device))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """On its device and in evaluation mode; as before afterwards."""
        moves = self.device != self._home
        try:
            if moves:
                self.model.to(self.device)
            with evaluating(self.model):
                yield
        finally:
            if moves:
                self.model.to(self._home)

    def inputs(self, batch) -> Inputs:
        """What the model is called with for one batch of the data, on its device."""
        if self._pick is not None:
            batch = self._pick(batch)
        args, kwargs = self._arguments(batch)
        if any(x.is_meta for x in tensors((args, kwargs))):
            raise RuntimeError(f"the batch for model {self.label!r} is on meta, without values")
        args, kwargs = copied_to(args, self.device), copied_to(kwargs, self.device)
        first = next((x for x in tensors((args, kwargs)) if x.ndim), None)
        if first is None:
            raise TypeError(
                f"the batch holds no tensor for model {self.label!r}, but {type(batch).__name__}; "
                "give batches as a tensor, (x, …) or a dict, or pick with `input_a`"
            )
        return Inputs(args, kwargs, first.shape[0])

    def _arguments(self, batch) -> tuple[tuple, dict]:
        if self._prepare is not None:
            batch = self._prepare(batch)
            whole = isinstance(batch, tuple)  # a function means what it returns
        else:
            whole = False
            if isinstance(batch, (tuple, list)) and self._forward is None:
                batch = batch[0] if batch else None
        if self._forward is not None:
            return (batch,), {}
        if isinstance(batch, Mapping):
            return (), dict(batch)
        return (batch if whole else (batch,)), {}

    def runs_with(self, other) -> bool:
        """Whether one forward pass does for both: the same network, called alike."""
        return isinstance(other, Participant) and self._way() == other._way()

    def _way(self) -> tuple:
        how = (self._pick, self._prepare, self._forward, self.autocast, self.device)
        return id(self.capture.model), *how

    def run(
        self,
        inputs: Inputs,
        number: int,
        sink: Sink,
        beside: Iterable[AbstractContextManager] = (),
    ) -> None:
        """One forward pass; `sink(layer, activation)` inside the hooks, `beside` around it."""
        try:
            with self._precision(), ExitStack() as stack:
                for watching in beside:
                    stack.enter_context(watching)
                self.capture.run(lambda model: self._call(model, inputs), inputs.n, sink)
        except Exception as error:
            self._explain_dtype(inputs, error)
            error.add_note(f"model {self.label!r} was running batch {number}, given {inputs}")
            raise

    def _call(self, model: nn.Module, inputs: Inputs):
        call = model if self._forward is None else lambda *args: self._forward(model, *args)
        return call(*inputs.args, **inputs.kwargs)

    def _precision(self):
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _explain_dtype(self, inputs: Inputs, error: Exception) -> None:
        """Torch says which operation failed; the reason is mostly the type of the images."""
        weights = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        first = next(tensors((inputs.args, inputs.kwargs)))
        if (
            isinstance(error, RuntimeError)
            and "type" in str(error)
            and self.autocast is None
            and weights not in (None, first.dtype)
            and (first.is_floating_point() or first.ndim > 2)  # token ids are whole numbers
        ):
            raise TypeError(
                f"model {self.label!r} has {str(weights)[6:]} weights, but is given {inputs}; "
                f"convert the images to {str(weights)[6:]}"
            ) from error

    def identity(self) -> dict:
        """What must be the same for a comparison to go on where it stopped."""
        facts = self.describe()
        weights = hashlib.sha256()
        for name, value in self.capture.model.state_dict().items():
            if isinstance(value, torch.Tensor) and not value.is_quantized:
                weights.update(f"{name} {list(value.shape)} {value.dtype}".encode())
                weights.update(value_bytes(value))
        return {
            "class": facts["class"],
            "weights": weights.hexdigest(),
            "layers": self.capture.wanted,
            "device": self.device.type,
        }

    def describe(self) -> dict:
        """What a result says of the model."""
        network = self.capture.model
        config = getattr(network, "pretrained_cfg", None) or {}
        return {
            "name": self.name or config.get("architecture") or type(network).__name__,
            "class": f"{type(network).__module__}.{type(network).__qualname__}",
            "parameters": sum(p.numel() for p in network.parameters()),
            "device": str(self.device),
        }


def _numbered(device: torch.device) -> torch.device:
    """Of GPUs the current one, where no number says which."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


class Entered(AbstractContextManager):
    """A context that is entered by another; `value` is what it gives."""

    def __init__(self, inner: AbstractContextManager):
        self._inner = inner

    def __enter__(self):
        self.value = self._inner.__enter__()
        return self.value

    def __exit__(self, *error):
        return self._inner.__exit__(*error)


def autocast_dtype(autocast: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype that an `autocast` argument names."""
    if autocast is None or autocast in AUTOCAST.values():
        return autocast
    if isinstance(autocast, str) and autocast in AUTOCAST:
        return AUTOCAST[autocast]
    raise ValueError(f"`autocast` must be 'fp16', 'bf16' or None, but is {autocast!r}")


def autocast_name(participants: Iterable) -> str | None:
    """The type in which they run, by name; some may not run at all."""
    dtype = next((one.autocast for one in participants if one.autocast is not None), None)
    return next((name for name, known in AUTOCAST.items() if known == dtype), None)
