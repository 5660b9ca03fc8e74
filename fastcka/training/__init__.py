"""Training of small networks on images with known cues."""

from fastcka.training.arms import ARMS
from fastcka.training.recipe import Recipe
from fastcka.training.trainer import train

__all__ = ["ARMS", "Recipe", "train"]
