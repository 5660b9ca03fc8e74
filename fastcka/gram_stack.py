"""The Gram matrices of one batch: a row a layer, centred and packed as they are put in."""

from collections.abc import Sequence

import torch

from fastcka.kernels import Finished, finish, gram, gram_finish, packed_length, rbf
from fastcka.kernels.layout import read_in_place
from fastcka.kernels.operations import check_activations
from fastcka.kernels.precision import accumulator


class GramStack:
    """What is left of a batch when its activations are gone: [L, m] packed Gram matrices.

    A layer is reduced the moment it is put in: memory does not grow with the width of the layers.

    Args:
        layers: their names; a row each.
        n: examples of the batch.
        estimator, gram, bandwidth, operand, backend: as in `MinibatchCKA`.
        device: where the activations are.

    >>> stack = GramStack(["a"], 4)
    >>> stack.put(0, torch.eye(4))
    >>> stack.packed.shape
    torch.Size([1, 6])
    """

    def __init__(
        self,
        layers: Sequence[str],
        n: int,
        *,
        estimator: str = "unbiased",
        gram: str = "linear",
        bandwidth: float | None = None,
        operand: torch.dtype | None = None,
        backend: str | None = None,
        device: torch.device | str = "cpu",
    ):
        self.layers = tuple(layers)
        self.n = n
        self.estimator, self.gram, self.bandwidth = estimator, gram, bandwidth
        self.operand, self.backend = operand, backend
        count = len(self.layers)
        new = torch.empty(0, dtype=torch.float64, device=device).new_empty
        self.packed = new(count, packed_length(n, estimator))
        self.diagonal = new(count, n)  # with the row sums: enough to recover the Gram matrix
        self.row_sums = new(count, n)
        self.summary = new(count, 5)  # of kernels.finish
        # eps of the sums of products, and of the centred Gram matrix made of them
        self.eps = torch.zeros(count, 2, dtype=torch.float64, device="cpu")
        self.dtype: torch.dtype | None = None  # of the first layer that was reduced here
        self._missing = set(range(count))

    @classmethod
    def joined(cls, rows: list["GramStack"]) -> "GramStack":
        """One stack of the same batch and options, from filled stacks of a layer each.

        Which layers a network has, and their order, shows when it has run. `rows` is emptied on the
        way.
        """
        first = rows[0]
        names = [name for row in rows for name in row.layers]
        stack = cls(
            names,
            first.n,
            estimator=first.estimator,
            gram=first.gram,
            bandwidth=first.bandwidth,
            operand=first.operand,
            backend=first.backend,
            device=first.packed.device,
        )
        for index in range(len(names)):
            row = rows.pop(0)
            if row.packed.device != stack.packed.device:
                raise _two_devices(row.layers[0], row.packed.device, stack.packed.device)
            for name in ("packed", "diagonal", "row_sums", "summary", "eps"):
                getattr(stack, name)[index] = getattr(row, name)[0]
        stack.dtype = first.dtype
        return stack.as_filled()

    def as_filled(self) -> "GramStack":
        """The same, when its tensors were filled in from outside."""
        self._missing.clear()
        return self

    @property
    def measure(self) -> tuple:
        """All that two stacks must share to be added up."""
        return (self.layers, self.estimator, self.gram, self.bandwidth, self.operand)

    @property
    def nbytes(self) -> int:
        return self.eps.nbytes + sum(part.nbytes for part in self._parts)

    @property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        """What `Finished` holds, of all layers."""
        return self.packed, self.diagonal, self.row_sums, self.summary

    def put(self, row: int, x: torch.Tensor) -> None:
        """Reduce the activations [n, ...] of layer `row` to its packed Gram matrix."""
        self.check(row, x)
        try:
            check_activations(x, "x")
            self._reduce(row, [x])
        except (TypeError, ValueError, RuntimeError) as error:
            raise type(error)(f"layer {self.layers[row]!r}: {error}") from error

    def put_all(self, activations: Sequence[torch.Tensor]) -> None:
        """Reduce those of all layers, in their order, at once: cheaper where they are narrow."""
        for row, x in enumerate(activations):
            self.check(row, x)
        try:
            start = 0
            for some in _runs(activations):
                self._reduce(start, some)
                start += len(some)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError):
            # One by one: the error names its layer.
            for row, x in enumerate(activations):
                self.put(row, x)

    def check(self, row: int, x: torch.Tensor) -> None:
        """See that x can be layer `row`."""
        check_examples(self.layers[row], x, self.n)
        if x.device != self.packed.device:
            raise _two_devices(self.layers[row], x.device, self.packed.device)

    @staticmethod
    def put_together(entries: Sequence[tuple["GramStack", int, torch.Tensor]]) -> None:
        """Reduce layers (stack, row, activations) of stacks of one size and kind, at once."""
        first, activations = entries[0][0], [x for *_, x in entries]
        try:
            done = first._finished(activations)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError):
            for stack, row, x in entries:  # one by one: the error names its layer
                stack.put(row, x)
            return
        eps = first._eps(activations)
        for name, values in zip(Finished._fields, done, strict=True):
            places = [getattr(stack, name)[row] for stack, row, _ in entries]
            torch._foreach_copy_(places, list(values.unbind()))
        for place, (stack, row, x) in enumerate(entries):
            stack.eps[row] = eps[place]
            stack.dtype = stack.dtype or x.dtype
            stack._missing.discard(row)

    def _reduce(self, first: int, activations: Sequence[torch.Tensor]) -> None:
        rows = slice(first, first + len(activations))
        self._finished(activations, Finished(*(part[rows] for part in self._parts)))
        self.eps[rows] = self._eps(activations)
        self.dtype = self.dtype or activations[0].dtype
        self._missing.difference_update(range(rows.start, rows.stop))

    def _finished(
        self, activations: Sequence[torch.Tensor], into: Finished | None = None
    ) -> Finished:
        options = {"estimator": self.estimator, "backend": self.backend}
        if self.gram == "linear":
            return gram_finish(activations, operand=self.operand, into=into, **options)
        if into is None:
            into = Finished(
                *(part.new_empty(len(activations), part.shape[1]) for part in self._parts)
            )
        width = 1.0 if self.bandwidth is None else self.bandwidth
        for row, x in enumerate(activations):
            batch = gram(x, operand=self.operand, backend=self.backend)
            own = Finished(*(whole[row] for whole in into))
            finish(rbf(batch, width, _eps_of_sums(x)), into=own, **options)
        return into

    def _eps(self, activations: Sequence[torch.Tensor]) -> torch.Tensor:
        """[L, 2]: of the sums of products, and of the centred Gram matrices."""
        # A Gaussian matrix is computed in float64 from the distances, whatever they came from.
        exact = torch.finfo(torch.float64).eps
        sums = [_eps_of_sums(x) for x in activations]
        pairs = [(one, exact if self.gram == "rbf" else one) for one in sums]
        return torch.tensor(pairs, dtype=torch.float64, device="cpu")

    def check_complete(self) -> None:
        if self._missing:
            names = ", ".join(repr(self.layers[row]) for row in sorted(self._missing))
            raise ValueError(f"no activations were given for {names}")


def _runs(activations: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The list in pieces, with one layer in each that must be copied: no two copies are held."""
    runs = []
    for x in activations:
        if runs and read_in_place(x):
            runs[-1].append(x)
        else:
            runs.append([x])
    return runs


def _eps_of_sums(x: torch.Tensor) -> float:
    """Of the accumulator, also for 16-bit activations: their values as received are exact."""
    return torch.finfo(accumulator(x.dtype)).eps


def _two_devices(layer: str, its: torch.device, first: torch.device) -> RuntimeError:
    return RuntimeError(f"layer {layer!r} is on {its}, but the batch began on {first}")


def check_examples(layer: str, x: torch.Tensor, n: int) -> None:
    if not isinstance(x, torch.Tensor):
        hint = "; use torch.from_numpy" if type(x).__module__ == "numpy" else ""
        raise TypeError(f"layer {layer!r} must be a torch.Tensor, but is {type(x).__name__}{hint}")
    if x.ndim < 2:
        raise ValueError(
            f"layer {layer!r} must have one row an example, [n, ...], but has shape {list(x.shape)}"
        )
    if x.shape[0] != n:
        raise ValueError(
            f"layer {layer!r} has {x.shape[0]} examples, but the batch has {n}; "
            "all layers of a batch must hold the same examples"
        )
