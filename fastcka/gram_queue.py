"""Activations on a GPU that wait until one launch can reduce many layers."""

from collections.abc import Sequence

import torch

from fastcka.gram_stack import GramStack
from fastcka.kernels import dispatch

# Bytes of activations that wait at most. Some layers at a time are enough to keep a GPU busy.
BUDGET = 1 << 30


class GramQueue:
    """Of one network: holds activations until they are many, then reduces them in one launch.

    What waits may be overwritten in place by a later layer. The first batch finds out: its layers
    are reduced at once, and held as long as they would have waited; those whose version has changed
    meanwhile never wait. The same layers empty the queue in every batch, so that later ones wait no
    longer than was tried.

    Args:
        budget: bytes that wait at most.

    >>> queue, stack = GramQueue(), GramStack(["a"], 4)
    >>> queue.put(stack, 0, torch.eye(4))  # on a CPU nothing waits
    >>> stack.check_complete()
    """

    def __init__(self, budget: int = BUDGET):
        self.budget = budget
        self._last: set[str] = set()  # layers after which the queue is emptied
        self._overwritten: set[str] = set()
        self._tried: list[tuple[str, torch.Tensor, int]] = []
        self._waiting: list[tuple[GramStack, int, torch.Tensor, int]] = []

    def try_out(self, layer: str, x: torch.Tensor, backend: str | None) -> None:
        """Of the first batch: a layer that was reduced, and would have waited from now on."""
        if not waits(x, backend):
            return
        self._tried.append((layer, x, x._version))
        if sum(_room(held) for _, held, _ in self._tried) > self.budget:
            self._last.add(layer)
            self._end_trial()

    def put(self, stack: GramStack, row: int, x: torch.Tensor) -> None:
        """Reduce a layer, now or when the queue is emptied."""
        if waits(x, stack.backend) and stack.layers[row] not in self._overwritten:
            stack.check(row, x)
            self._waiting.append((stack, row, x, x._version))
        else:
            stack.put(row, x)

    def passed(self, layer: str) -> None:
        """All of a layer was put."""
        if layer in self._last:
            self.empty()

    def empty(self) -> None:
        """Reduce all that waits.

        Raises:
            RuntimeError: the network has overwritten an activation that it did not in the first
                batch.
        """
        self._end_trial()
        waiting, self._waiting = self._waiting, []
        for stack, row, x, version in waiting:
            if x._version != version:
                raise RuntimeError(
                    f"layer {stack.layers[row]!r} was overwritten in place before it was reduced, "
                    'which the first batch did not do; compare with `backend="torch"`, by which '
                    "no layer waits"
                )
            # It may have been made on a stream of the network's own, whose memory is used again.
            if x.is_cuda:
                x.record_stream(torch.cuda.current_stream(x.device))
        reduce_together([(stack, row, x) for stack, row, x, _ in waiting])

    def clear(self) -> None:
        """Forget what waits: its forward pass has failed."""
        self._tried, self._waiting = [], []

    def _end_trial(self) -> None:
        self._overwritten |= {layer for layer, x, version in self._tried if x._version != version}
        self._tried = []


def waits(x: torch.Tensor, backend: str | None) -> bool:
    """Whether reducing many layers at once is faster: on a GPU, but by torch.

    Tensors of inference mode do not say whether they were overwritten.
    """
    if not on_gpu(x) or x.is_inference():
        return False
    return dispatch.name_of("gram_finish", x.device, x.dtype, len(x), backend) != "torch"


def on_gpu(x: torch.Tensor) -> bool:
    return x.device.type == "cuda"


def _room(x: torch.Tensor) -> int:
    """Bytes that wait with a layer: all that it is a view of, and its Gram matrix in float64."""
    return x.untyped_storage().nbytes() + 8 * len(x) ** 2


def reduce_together(entries: Sequence[tuple[GramStack, int, torch.Tensor]]) -> None:
    """Reduce layers of several stacks: in one launch those of the same size and options."""
    alike: dict[tuple, list[tuple[GramStack, int, torch.Tensor]]] = {}
    for entry in entries:
        stack = entry[0]
        alike.setdefault((stack.n, stack.packed.device, *stack.measure[1:]), []).append(entry)
    for some in alike.values():
        GramStack.put_together(some)
