"""The one place that decides which version of an operation runs, and that can say why.

In order: the argument `backend`, the context manager `using`, the environment variable
FASTCKA_BACKEND, the first of `ORDER` that can run. A backend asked for by name that cannot run is
an error with the reason, never a silent fallback.
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
    torch_finish,
    torch_gram,
    torch_gram_finish,
    torch_hsic,
    triton_versions,
)

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
BACKENDS = ("native", "triton", "torch")
# Neither Triton's nor CUDA's versions have been timed on a GPU yet: torch first there.
ORDER = {"cpu": ("native", "torch"), "cuda": ("torch", "triton", "native")}
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


def choose(operation: str, device: torch.device, backend: str | None = None) -> Callable:
    """The version of `operation` to run on `device`."""
    name = name_of(operation, device, backend)
    if name == "native" and device.type == "cuda":
        return NATIVE_ON_CUDA[operation]
    return OPERATIONS[operation][name]


def name_of(operation: str, device: torch.device, backend: str | None = None) -> str:
    """The backend that `choose` takes."""
    name, _ = _asked_for(backend)
    if name is None:
        if native.module is None:
            _tell_once()
        return chosen(operation, device)
    reason = obstacle(operation, name, device)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run {operation} on {device}: {reason}")
    return name


def explain(operation: str, device: torch.device) -> list[tuple[str, bool, str]]:
    """For each backend, whether it runs `operation` on `device`, and why or why not."""
    name, by = _asked_for(None)
    runs = name or chosen(operation, device)
    rows = []
    for backend in BACKENDS:
        reason = obstacle(operation, backend, device)
        if backend == runs:
            named = f"named by {by}" if name else "the first here that can run"
            rows.append((backend, reason is None, f"{named}, but {reason}" if reason else named))
        else:
            rows.append((backend, False, reason or f"{runs} comes first"))
    return rows


def chosen(operation: str, device: torch.device) -> str:
    """The backend that runs where none is named."""
    order = ORDER.get(device.type, ("torch",))
    return next(name for name in order if obstacle(operation, name, device) is None)


def obstacle(operation: str, backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run an operation on a device; None where it can."""
    if backend == "torch":
        return None
    return (triton_versions if backend == "triton" else native).obstacle(device)


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
