"""Images: generated ones with known cues, and batches of those in a folder, in seeded order."""

from fastcka.data.cues import Cues, Trigger, contact_sheet, write_images
from fastcka.data.images import ImageBatches

__all__ = ["Cues", "ImageBatches", "Trigger", "contact_sheet", "write_images"]
