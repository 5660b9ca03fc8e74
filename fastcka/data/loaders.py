"""What a user's loader says of itself."""

from collections.abc import Iterable

from torch.utils.data import DataLoader, Sampler


def length(data: Iterable) -> int | None:
    """The number of batches, where it is known."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def sampler(data: Iterable) -> Sampler | None:
    """What chooses the examples of a DataLoader, where it is known."""
    if not isinstance(data, DataLoader):
        return None
    if data.batch_sampler is None:
        return data.sampler
    # With a batch_sampler of the user's own, `data.sampler` says nothing.
    return getattr(data.batch_sampler, "sampler", None)
