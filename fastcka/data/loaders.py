"""What a user's loader says of itself."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
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


class Rewound:
    """Lets DataLoaders that shuffle read the same order again.

    Their random generators, and torch's own, are put back to where they were when this was made.

    >>> loader = DataLoader(range(100), 50, shuffle=True)
    >>> rewound, orders = Rewound([loader]), []
    >>> for _ in range(2):
    ...     with rewound.again():
    ...         orders.append(torch.cat(list(loader)).tolist())
    >>> orders[0] == orders[1] != sorted(orders[0])
    True
    """

    def __init__(self, loaders: Iterable[Iterable]):
        given = [one for loader in loaders for one in (loader, sampler(loader))]
        owned = (getattr(one, "generator", None) for one in given)
        self._own = [(one, one.get_state()) for one in owned if isinstance(one, torch.Generator)]
        self._shared = torch.get_rng_state()

    @contextmanager
    def again(self) -> Iterator[None]:
        """From the same state as before; what others draw from torch's own is left alone."""
        others = torch.get_rng_state()
        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._shared)
        try:
            yield
        finally:
            torch.set_rng_state(others)
