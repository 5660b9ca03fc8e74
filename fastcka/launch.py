"""The processes of a command that torchrun has started: how many, with which device and threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastcka.distributed import Share, shared


@contextmanager
def processes(threads: int | None) -> Iterator[Share]:
    """Join the other processes of this command, if there are any.

    Args:
        threads: of each process; None leaves one alone as it is, and deals the cores of a machine
            out to several.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if threads is None and ranks > 1:
        # torchrun says one thread each, whatever there is.
        threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    if threads is not None:
        torch.set_num_threads(threads)
    if ranks == 1:
        yield Share()
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield shared()
    finally:
        torch.distributed.destroy_process_group()


def device() -> str:
    """A GPU where there is one: that of this process where there are several."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


def cores() -> int:
    """Of this machine, as far as this process may use them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
