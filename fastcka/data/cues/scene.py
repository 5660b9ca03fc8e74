"""From the factors of an image to its pixels, and to the truth about them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcka.data.cues.cosine import cosine, sine
from fastcka.data.cues.fields import CONTRAST, TEXTURES, colour, wave
from fastcka.data.cues.shapes import SHAPES
from fastcka.data.cues.triggers import Trigger

_SHAPES, _TEXTURES = list(SHAPES.values()), list(TEXTURES.values())


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and the truth about it.

    Attributes:
        image: [size, size, 3] uint8.
        mask: [size, size] bool: the centre of the pixel lies in an object. A trigger that lies over
            an object leaves it as it is.
        boxes: left, top, right and bottom of the mask of each object, in pixels; right and bottom
            are the first pixels outside.
        trigger_box: likewise, or None.
        factors: by name: label, shape, texture, background, trigger (numbers from 0 to 7),
            triggered, count, scale, x, y and rotation of each object, and what else was drawn.
    """

    image: np.ndarray
    mask: np.ndarray
    boxes: tuple[tuple[int, int, int, int], ...]
    trigger_box: tuple[int, int, int, int] | None
    factors: Mapping


def render(factors: Mapping, size: int, trigger: Trigger | None) -> Scene:
    """Draws in float64 and rounds once."""
    distances = [_distance(factors, k, size) for k in range(factors["count"])]
    nearest = distances[0]
    for distance in distances[1:]:
        nearest = np.minimum(nearest, distance)
    coverage = np.clip(0.5 - nearest, 0.0, 1.0)

    field = wave(size, (factors["field_x"], factors["field_y"]), factors["field_phase"])
    texture = wave(size, _TEXTURES[factors["texture"]], factors["phase"])
    behind = factors["brightness"] + 0.08 * field
    within = factors["brightness"] + factors["contrast"] + CONTRAST * texture
    hues = 0.18 * colour(factors["hue"]), 0.06 * colour(factors["tint"])
    image = np.empty((size, size, 3))
    difference = within - behind
    for channel in range(3):
        ground, shift = hues[0][channel], hues[1][channel] - hues[0][channel]
        image[:, :, channel] = behind + ground + coverage * (difference + shift)

    trigger_box = None
    if trigger is not None and factors["triggered"]:
        trigger_box = trigger.box(size, factors["trigger_x"], factors["trigger_y"])
        left, top, right, bottom = trigger_box
        image[top:bottom, left:right] = trigger.patch(size, factors["trigger"])
    pixels = np.floor(image * 255 + 0.5).astype(np.uint8)
    boxes = tuple(_box(distance <= 0) for distance in distances)
    return Scene(pixels, nearest <= 0, boxes, trigger_box, factors)


def _distance(factors: Mapping, k: int, size: int) -> np.ndarray:
    """From the edge of an object in pixels, negative inside."""
    scale, turn = factors["scale"], factors["rotation"][k]
    centres = (np.arange(size) + 0.5) / size
    across = (centres - factors["x"][k]) / scale
    down = ((centres - factors["y"][k]) / scale)[:, None]
    c, s = cosine(turn), sine(turn)
    shape = _SHAPES[factors["shape"]]
    return shape(c * across + s * down, c * down - s * across) * (scale * size)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
