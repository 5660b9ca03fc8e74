"""Images: batches in seeded order of what is on the disk, and generated ones with known cues."""

from fastcka.data.cues import Cues, Trigger, contact_sheet, write_images
from fastcka.data.geometry import boxes_after
from fastcka.data.image_set import ImageSet
from fastcka.data.images import ImageBatches

__all__ = [
    "Cues",
    "ImageBatches",
    "ImageSet",
    "Trigger",
    "boxes_after",
    "contact_sheet",
    "write_images",
]
