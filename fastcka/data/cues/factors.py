"""The factors of an image, drawn from (seed, index), and the label that follows from them."""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np

from fastcka.data.cues.philox import words
from fastcka.data.cues.shapes import RADIUS

CUES = ("shape", "texture", "background", "trigger")
CLASSES = 8
RULES = (*CUES, "mixture")
MOST = 4  # objects in an image
# Square root of an object's area, as a part of the image's side: every object is 0.25 to 0.7 wide.
SCALES = (0.2216, 0.3988)
# The words of random bits, in order: what comes new goes to the end, or every image would change.
FIELDS = (
    *CUES,
    *(f"{cue} follows" for cue in CUES),
    *(f"{cue} anew" for cue in CUES),
    *("mixture", "conflict", "triggered", "trigger x", "trigger y", "count", "quadrants"),
    *("scale", "contrast", "darker", "brightness", "hue", "tint", "phase"),
    *("field x", "field y", "field phase"),
    *(f"{value} {k}" for k in range(MOST) for value in ("x", "y", "rotation")),
)
QUADRANTS = np.array(list(permutations(range(4))))


def draw(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    *,
    label: str,
    mixture: float,
    correlation: Mapping[str, float],
    shuffled: Sequence[str],
    conflict: bool,
    share: float,
    most: int,
) -> dict[str, np.ndarray]:
    """A column a factor; every one is uniform, and independent but for what was asked."""
    drawn = dict(zip(FIELDS, words(seed, indices, len(FIELDS)).T, strict=True))

    def whole(field: str, below: int) -> np.ndarray:
        return (drawn[field] * np.uint64(below) >> np.uint64(32)).astype(np.int64)

    def real(field: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return low + (high - low) * ((drawn[field] + 0.5) / 2.0**32)

    cues = {cue: whole(cue, CLASSES) for cue in CUES}
    if conflict:
        cues["texture"] = (cues["shape"] + 1 + whole("conflict", CLASSES - 1)) % CLASSES
    if label == "mixture":
        target = np.where(real("mixture") < mixture, cues["shape"], cues["texture"])
    else:
        target = cues[label]
    for cue, rho in correlation.items():
        cues[cue] = np.where(real(f"{cue} follows") < rho, target, cues[cue])
    for cue in shuffled:
        cues[cue] = whole(f"{cue} anew", CLASSES)

    count = 1 + whole("count", most)
    # Several stand in a quarter of the image each, at half the size.
    cell = np.where(count == 1, 1.0, 0.5)
    scale = cell * real("scale", *SCALES)
    corner = QUADRANTS[whole("quadrants", len(QUADRANTS))] * (count > 1)[:, None]
    room = cell - 2 * RADIUS * scale
    x, y = (
        np.stack([real(f"{axis} {k}") for k in range(MOST)], 1) * room[:, None]
        + (RADIUS * scale)[:, None]
        + 0.5 * quarter
        for axis, quarter in (("x", corner % 2), ("y", corner // 2))
    )
    return {
        "label": target,
        **cues,
        "triggered": real("triggered") < share,
        "count": count,
        "scale": scale,
        "x": x,
        "y": y,
        "rotation": np.stack([real(f"rotation {k}") for k in range(MOST)], 1),
        "brightness": real("brightness", 0.42, 0.58),
        "contrast": real("contrast", 0.12, 0.22) * np.where(real("darker") < 0.5, -1, 1),
        "hue": (cues["background"] + real("hue", -0.2, 0.2)) / CLASSES,
        "tint": real("tint"),
        "phase": real("phase"),
        "field_x": real("field x", -1.5, 1.5),
        "field_y": real("field y", -1.5, 1.5),
        "field_phase": real("field phase"),
        "trigger_x": real("trigger x"),
        "trigger_y": real("trigger y"),
    }
