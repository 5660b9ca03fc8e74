"""Images in batches of seeded random order, from a folder, from shards or generated."""

from fastcka.data.generated import write_images
from fastcka.data.images import ImageBatches

__all__ = ["ImageBatches", "write_images"]
