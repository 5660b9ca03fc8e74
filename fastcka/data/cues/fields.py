"""What fills a silhouette and what lies behind it: textures, backgrounds, colours."""

from collections.abc import Sequence

import numpy as np

from fastcka.data.cues.cosine import cosine, sine

# Cycles an image is wide, along x and along y: two frequencies at four orientations.
TEXTURES = {
    f"{name}_{degrees}": (
        float(cycles * cosine(degrees / 360)),
        float(cycles * sine(degrees / 360)),
    )
    for name, cycles in (("coarse", 7), ("fine", 13))
    for degrees in (0, 45, 90, 135)
}
BACKGROUNDS = ("red", "gold", "lime", "green", "cyan", "blue", "violet", "magenta")
CONTRAST = 0.13  # of every texture: amplitude, where white is 1


def wave(size: int, cycles: Sequence[float], phase: float) -> np.ndarray:
    """cos 2 pi (u x + v y + phase) at the centres of the pixels, [size, size], rows first."""
    centres = (np.arange(size) + 0.5) / size
    across, down = cycles[0] * centres, cycles[1] * centres + phase
    return cosine(down)[:, None] * cosine(across) - sine(down)[:, None] * sine(across)


def colour(hue: float) -> np.ndarray:
    """Red, green and blue of a hue in turns, without brightness: they add up to 0."""
    return cosine(hue - np.arange(3) / 3)
