"""Several processes that share the batches of one comparison, and add up once, at the end."""

import datetime
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch.distributed as dist

from fastcka.streaming import BLOCKS

# How long one process waits at the end for the others: they have all but equal work.
PATIENCE = datetime.timedelta(hours=2)


class Share(NamedTuple):
    """The part of the batches that is this process's.

    Whole batches are dealt, never examples, by a rule that needs no talking: the numbers of batches
    may be uneven, and no process can wait for another before the end. All batches of one block of
    `MinibatchCKA` go to one process, so that its sums do not depend on how many there are.

    >>> [[number for number in range(7) if Share(rank, 2).has(number)] for rank in range(2)]
    [[0, 2, 4, 6], [1, 3, 5]]
    """

    rank: int = 0
    ranks: int = 1
    group: Any = None

    def has(self, number: int, blocks: int = 1) -> bool:
        """Whether batch `number` is this process's, where a batch takes so many blocks."""
        return number % max(1, BLOCKS // blocks) % self.ranks == self.rank

    def everyone(self, value) -> list:
        """What every process has, in order of rank; all must call this."""
        if self.ranks == 1:
            return [value]
        try:
            dist.monitored_barrier(self.group, timeout=PATIENCE, wait_all_ranks=True)
            values = [None] * self.ranks
            dist.all_gather_object(values, value, self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.ranks} waited for the others, and not all came: "
                f"{error}"
            ) from error
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, in all of them; its error ends all of them."""
        if self.ranks == 1:
            return make()
        value, failure = None, None
        if self.rank == 0:
            try:
                value = make()
            except Exception as error:
                failure = error
        value, failed = self.everyone((value, failure is not None))[0]
        if failed:
            raise failure or SystemExit(1)  # the first process says why
        return value


def shared() -> Share:
    """The share of this process; all processes of `torch.distributed` must call this."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "`distributed` needs several processes: start them with torchrun, and call "
            "torch.distributed.init_process_group first"
        )
    # What is added up at the end lies on the CPU, wherever the models run.
    return Share(dist.get_rank(), dist.get_world_size(), _on_cpu(dist.group.WORLD))


@lru_cache(maxsize=1)
def _on_cpu(world: "dist.ProcessGroup") -> "dist.ProcessGroup":  # some builds of torch have none
    """A group that exchanges what lies on the CPU, made once."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")
