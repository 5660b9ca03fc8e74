"""The one place that decides which version of an operation runs, and that can say why.

In order: the argument `backend`, the context manager `using`, the environment variable
FASTCKA_BACKEND, the fastest that can run by the table of the device (`speed`) or, where there is
none, the first of `ORDER`. A backend asked for by name that cannot run is an error with the reason,
never a silent fallback. Processes that find the same table take the same versions.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from fastcka.kernels import (
    cuda_launch,
    native,
    speed,
    torch_finish,
    torch_gram,
    torch_gram_finish,
    torch_hsic,
    triton_versions,
)
from fastcka.options import BACKENDS

OPERATIONS: dict[str, dict[str, Callable]] = {
    "gram": {
        "native": native.gram,
        "triton": triton_versions.gram,
        "torch": torch_gram.gram,
    },
    "finish": {
        "native": native.finish,
        "triton": triton_versions.finish,
        "torch": torch_finish.finish,
    },
    "gram_finish": {
        "native": native.gram_finish,
        "triton": triton_versions.gram_finish,
        "torch": torch_gram_finish.gram_finish,
    },
    "hsic_pairs": {
        "native": native.hsic_pairs,
        "triton": triton_versions.hsic_pairs,
        "torch": torch_hsic.hsic_pairs,
    },
}
# Where nothing was measured: elsewhere torch, the reference. Which version is the fastest, and
# whether it is right, differs from one GPU to another.
ORDER = {"cpu": ("native", "torch")}
NATIVE_ON_CUDA: dict[str, Callable] = {
    "gram": cuda_launch.gram,
    "finish": cuda_launch.finish,
    "gram_finish": cuda_launch.gram_finish,
    "hsic_pairs": cuda_launch.hsic_pairs,
}

_named: ContextVar[str | None] = ContextVar("fastcka_backend", default=None)
_told = False


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Run every operation within the block on one backend.

    >>> with using("torch"):
    ...     pass
    """
    check_backend(backend)
    token = _named.set(backend)
    try:
        yield
    finally:
        _named.reset(token)


def choose(
    operation: str, device: torch.device, dtype: torch.dtype, n: int, backend: str | None = None
) -> Callable:
    """The version of `operation` to run on activations of `dtype` of n examples on `device`."""
    name = name_of(operation, device, dtype, n, backend)
    if name == "native" and device.type == "cuda":
        return NATIVE_ON_CUDA[operation]
    return OPERATIONS[operation][name]


def name_of(
    operation: str, device: torch.device, dtype: torch.dtype, n: int, backend: str | None = None
) -> str:
    """The backend that `choose` takes."""
    name, _ = _asked_for(backend)
    if name is None:
        if native.module is None:
            _tell_once()
        return chosen(operation, device, dtype, n)
    reason = obstacle(name, device)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run {operation} on {device}: {reason}")
    return name


def explain(
    operation: str, device: torch.device, dtype: torch.dtype | None = None, n: int | None = None
) -> list[tuple[str, bool, str]]:
    """For each backend, whether it runs `operation` on `device`, and why or why not.

    dtype, n: of the activations; None is what was not measured.
    """
    name, by = _asked_for(None)
    runs = name or chosen(operation, device, dtype, n)
    measured = {row.backend: row for row in speed.nearest(operation, device, dtype, n)}
    rows = []
    for backend in BACKENDS:
        reason, row = obstacle(backend, device), measured.get(backend)
        if backend == runs and name:
            named = f"named by {by}"
            rows.append((backend, reason is None, f"{named}, but {reason}" if reason else named))
        elif backend == runs:
            rows.append((backend, True, _why_first(device, row)))
        elif measured and not name:
            slower = f"slower, {_result(row)}" if row and row.median_us else row and row.why
            rows.append((backend, False, reason or slower or "was not measured"))
        else:
            rows.append((backend, False, reason or f"{runs} comes first"))
    return rows


def chosen(operation: str, device: torch.device, dtype: torch.dtype | None, n: int | None) -> str:
    """The backend that runs where none is named."""
    rows = speed.nearest(operation, device, dtype, n)
    if rows:
        order = (*(row.backend for row in rows if row.median_us is not None), "torch")
    else:
        order = ORDER.get(device.type, ("torch",))
    return next(name for name in order if obstacle(name, device) is None)


def obstacle(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device; None where it can."""
    if backend == "torch":
        return None
    return (triton_versions if backend == "triton" else native).obstacle(device)


def _why_first(device: torch.device, row: speed.Row | None) -> str:
    """Of the backend that runs where nobody named one."""
    if row is not None:
        rank = "the fastest" if row.median_us is not None else "the reference"
        return f"{rank} here, {_result(row)} at n = {row.n}"
    if device.type == "cuda" and speed.known(device).table is None:
        return "nothing was measured on this GPU yet; `fastcka info --measure` does so"
    return "the first here that can run"


def _result(row: speed.Row) -> str:
    return row.why if row.median_us is None else f"{row.median_us:,.1f} µs a call"


def _asked_for(backend: str | None) -> tuple[str | None, str]:
    for name, by in (
        (backend, "the argument `backend`"),
        (_named.get(), "fastcka.kernels.using"),
        (os.environ.get("FASTCKA_BACKEND"), "FASTCKA_BACKEND"),
    ):
        if name:
            check_backend(name, by)
            return name, by
    return None, ""


def check_backend(name: str, what: str = "`backend`") -> None:
    if name not in BACKENDS:
        raise ValueError(f"{what} must be one of {', '.join(BACKENDS)}, but is {name!r}")


def _tell_once() -> None:
    global _told
    if not _told:
        _told = True
        warnings.warn(
            "fastcka runs on torch alone, which is slower: its native kernels are not installed "
            f"({native.missing}). `fastcka info` says more; FASTCKA_BACKEND=torch hides this.",
            RuntimeWarning,
            stacklevel=4,
        )
