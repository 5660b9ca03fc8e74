"""Generated images with known cues."""

from fastcka.data.cues.dataset import Cues
from fastcka.data.cues.export import write_images
from fastcka.data.cues.scene import Scene
from fastcka.data.cues.sheet import contact_sheet
from fastcka.data.cues.triggers import Trigger

__all__ = ["Cues", "Scene", "Trigger", "contact_sheet", "write_images"]
