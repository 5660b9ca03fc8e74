"""What goes to disk of a model that runs beside its sums: its Gram matrices, batch by batch."""

from collections.abc import Callable, Mapping

import torch

from fastcka.fingerprints import FingerprintWriter, images_of
from fastcka.gram_stack import GramStack
from fastcka.result import CKAResult


class Keeper:
    """Hands the Gram matrices of one model to a writer, with the images that they are of.

    Args:
        writer: of a fingerprint. ids: as for `images_of`.
        about: what is known of the model beside what is seen of it.
    """

    def __init__(
        self, writer: FingerprintWriter, ids: Callable | None, about: Mapping | None = None
    ):
        self.writer, self._ids, self._about = writer, ids, dict(about or {})

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to be kept."""
        return self.writer.finished

    def identity(self) -> dict:
        """What must be the same to go on."""
        return {"dtype": self.writer.dtype}

    def images(self, place: tuple[int, int], batch, size: int) -> torch.Tensor:
        """Which images a batch of this size holds; its place are its pass and its number."""
        images = images_of(batch, self._ids)
        if len(images) != size:
            raise ValueError(f"`ids` names {len(images)} images, but the batch holds {size}")
        return images

    def add(
        self,
        images: torch.Tensor,
        parts: list[slice],
        stacks: list[Mapping[str, GramStack] | None],
    ) -> None:
        """Keep the parts of a batch that are large enough; after an error, none of them."""
        filled = zip(parts, stacks, strict=True)
        self.writer.add(
            (stack, images[part])
            for part, one in filled
            if one is not None
            for stack in one.values()
        )

    def state(self) -> dict:
        return self.writer.state()

    def load(self, state: Mapping) -> None:
        self.writer.load(state)

    def finish(self, result: CKAResult, account: Mapping, division: tuple[int, int] | None) -> None:
        """All has been kept: the model with itself, `Account.state`, and `Course.division`."""
        meta = {key: value for key, value in result.meta.items() if key != "models"}
        model = result.meta["models"]["a"] | self._about
        self.writer.finish(model, meta, result.warnings)
