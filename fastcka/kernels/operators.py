"""The operations as torch operators, so that a compiled network that calls them keeps one graph.

Outside of `torch.compile` they are called directly: an operator costs some microseconds more.
"""

import torch

from fastcka.kernels import operations

_library = torch.library.Library("fastcka", "DEF")


def _define(name: str, signature: str, run, shapes) -> None:
    # Tables that outlast a call would lie in the memory of a graph that the compiler records.
    _library.define(f"{name}{signature}", tags=(torch.Tag.cudagraph_unsafe,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastcka::{name}", shapes, lib=_library)


def _gram(x, operand, backend):
    return tuple(operations.gram(x, operand=operand, backend=backend))


def _gram_shapes(x, operand, backend):
    n = x.shape[0]
    return x.new_empty(n, n, dtype=torch.float64), x.new_empty(3, dtype=torch.float64)


def _finish(k, stats, estimator, backend):
    batch = operations.Gram(k, stats)
    return tuple(operations.finish(batch, estimator=estimator, backend=backend))


def _finish_shapes(k, stats, estimator, backend):
    n = k.shape[0]
    return tuple(k.new_empty(size) for size in (operations.packed_length(n, estimator), n, n, 5))


def _gram_finish(layers, estimator, operand, backend):
    options = {"estimator": estimator, "operand": operand, "backend": backend}
    return tuple(operations.gram_finish(layers, **options))


def _gram_finish_shapes(layers, estimator, operand, backend):
    n = layers[0].shape[0]
    sizes = (operations.packed_length(n, estimator), n, n, 5)
    return tuple(layers[0].new_empty(len(layers), s, dtype=torch.float64) for s in sizes)


def _hsic_pairs(a, b, backend):
    return operations.hsic_pairs(a, b, backend=backend)


def _hsic_pairs_shapes(a, b, backend):
    return a.new_empty(a.shape[0], a.shape[0] if b is None else b.shape[0])


_four = "-> (Tensor, Tensor, Tensor, Tensor)"
_define("gram", "(Tensor x, str? operand, str? backend) -> (Tensor, Tensor)", _gram, _gram_shapes)
_define(
    "finish",
    f"(Tensor k, Tensor stats, str estimator, str? backend) {_four}",
    _finish,
    _finish_shapes,
)
_define(
    "gram_finish",
    f"(Tensor[] layers, str estimator, str? operand, str? backend) {_four}",
    _gram_finish,
    _gram_finish_shapes,
)
_define(
    "hsic_pairs",
    "(Tensor a, Tensor? b, str? backend) -> Tensor",
    _hsic_pairs,
    _hsic_pairs_shapes,
)
