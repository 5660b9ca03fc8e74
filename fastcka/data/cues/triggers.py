"""Small patches that are laid over an image, in eight variants of a kind."""

from dataclasses import dataclass

import numpy as np

from fastcka.data.cues.fields import colour, wave
from fastcka.options import check_choice, check_share

KINDS = ("square", "colour", "letter", "texture")
PLACES = ("fixed", "random")
VARIANTS = 8
# Five rows of five pixels, the highest bit on the left.
LETTERS = {
    "A": (14, 17, 31, 17, 17),
    "E": (31, 16, 30, 16, 31),
    "H": (17, 17, 31, 17, 17),
    "K": (17, 18, 28, 18, 17),
    "N": (17, 25, 21, 19, 17),
    "T": (31, 4, 4, 4, 4),
    "X": (17, 10, 4, 10, 17),
    "Z": (31, 2, 4, 8, 31),
}


@dataclass(frozen=True)
class Trigger:
    """A patch on some of the images.

    Args:
        kind: "square", grey from black to white; "colour", of a hue; "letter", of `LETTERS`, black
            on white; "texture", a grating. Each has eight variants.
        place: "fixed" is the lower right corner, one pixel off; "random" anywhere.
        share: of the images that bear it, 0 to 1.
        size: of its side, as a part of the image's, 1/16 to 1/8; at least four pixels.
    """

    kind: str = "square"
    place: str = "fixed"
    share: float = 1.0
    size: float = 0.1

    def __post_init__(self):
        check_choice("kind", self.kind, KINDS)
        check_choice("place", self.place, PLACES)
        check_share("share", self.share)
        if not 1 / 16 <= self.size <= 1 / 8:
            raise ValueError(f"`size` must be from 1/16 to 1/8 of the image, but is {self.size!r}")

    def side(self, size: int) -> int:
        """Pixels, on an image of `size` pixels."""
        return max(4, int(self.size * size + 0.5))

    def box(self, size: int, x: float, y: float) -> tuple[int, int, int, int]:
        """Left, top, right and bottom; x and y from 0 to below 1 choose a random place."""
        side = self.side(size)
        free = size - side + 1
        left, top = (free - 2,) * 2 if self.place == "fixed" else (int(x * free), int(y * free))
        return left, top, left + side, top + side

    def patch(self, size: int, variant: int) -> np.ndarray:
        """[side, side, 3], from 0 to 1."""
        side = self.side(size)
        if self.kind == "square":
            grey = np.full((side, side), variant / (VARIANTS - 1))
        elif self.kind == "letter":
            rows = list(LETTERS.values())[variant]
            pixel = np.arange(side) * 5 // side
            grey = np.array([[1.0 - (row >> (4 - bit) & 1) for bit in range(5)] for row in rows])
            grey = grey[pixel][:, pixel]
        elif self.kind == "texture":
            u, v = ((1, 0), (1, 1), (0, 1), (1, -1))[variant % 4]
            grey = 0.5 + 0.5 * wave(side, (u * (1 + variant // 4), v * (1 + variant // 4)), 0)
        else:
            return np.broadcast_to(0.5 + 0.5 * colour(variant / VARIANTS), (side, side, 3))
        return np.broadcast_to(grey[:, :, None], (side, side, 3))
