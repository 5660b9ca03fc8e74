"""What a comparison is doing at the moment, for who listens: nobody, but for `fastcka.plan`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

READING = "reading"  # batches of the data, and fingerprints; putting them on the device
MODELS = "models"
GRAM = "Gram matrices"
PRODUCTS = "products"  # of all pairs of layers, and what stands beside CKA


class Stages:
    """Is told by the engine what comes next, and gives it the batches; here it heeds nothing.

    Attributes:
        rehearsal: whether the run is not the real one: nothing is saved and no bar is shown.
    """

    rehearsal = False

    def begin(self, stage: str) -> None:
        """One of the stages above begins, and the one before it ends."""

    def start(self, participants: list, course) -> None:
        """All is ready for the first batch."""

    def some(self, batches: Iterator) -> Iterator:
        """Those of the batches that are to be run."""
        return batches

    def hold(self, batch, inputs: dict, stacks: list) -> None:
        """A batch has run: what the models were given, and the Gram matrices of its parts."""

    def end(self, accumulator, record: Callable[[], tuple] | None) -> None:
        """All batches are added up; `record` makes what is saved of them, where a state is."""


_listening: ContextVar[Stages] = ContextVar("stages", default=Stages())  # noqa: B039


def stages() -> Stages:
    """Who listens now."""
    return _listening.get()


@contextmanager
def told_to(listener: Stages) -> Iterator[None]:
    """Comparisons within the block tell `listener` what they do.

    >>> with told_to(Stages()):
    ...     pass
    """
    token = _listening.set(listener)
    try:
        yield
    finally:
        _listening.reset(token)
