"""Images: batches in seeded order, of folders and shards, and generated ones with known cues."""

from fastcka.data.cues import Cues, Trigger, contact_sheet, write_images
from fastcka.data.images import ImageBatches

__all__ = ["Cues", "ImageBatches", "Trigger", "contact_sheet", "write_images"]
