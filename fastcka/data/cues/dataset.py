"""Images with known cues as a data set of torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from torch.utils.data import Dataset

from fastcka.data.cues.factors import CUES, MOST, RULES, draw
from fastcka.data.cues.fields import BACKGROUNDS, TEXTURES
from fastcka.data.cues.scene import Scene, render
from fastcka.data.cues.shapes import SHAPES
from fastcka.data.cues.triggers import VARIANTS, Trigger
from fastcka.options import check_choice, check_share, check_whole_number

FORMAT = 1  # of the images: another number where the same arguments draw others
CLASSES = {"shape": tuple(SHAPES), "texture": tuple(TEXTURES), "background": BACKGROUNDS}
NUMBERED = tuple(map(str, range(VARIANTS)))


class Cues(Dataset):
    """Generated images whose cues are known: shape, texture, background and a trigger patch.

    A textured silhouette on a coloured field. Image i is a function of (seed, i) and of the
    arguments alone, to the last bit, on every machine. The eight classes of every cue are drawn
    uniformly and independently; place, size, rotation, colours and phases are drawn at random.

    Args:
        count: number of images.
        size: pixels of a side, from 16 on.
        seed: from 0 on; training and test images have different ones.
        label: the cue that is the label: "shape", "texture", "background", "trigger", or "mixture",
            shape or texture by chance.
        mixture: how often the label of a mixture is the shape, 0 to 1.
        correlation: by cue, how often it is made to follow the label, 0 to 1; else it is as drawn,
            so that it agrees with the label in rho + (1 - rho) / 8 of the images.
        shuffled: cues that are drawn anew, without regard to the label, after all else.
        conflict: draws textures unlike the shape alone.
        trigger: a patch laid over the image; None for none.
        objects: up to so many, all alike, 1 to 4; several stand in a quarter of the image each, at
            half the size.
        transform: of a PIL image; None gives PIL images.

    Indexing gives (image, label); `scene(i)` gives more, of any i from 0 on. An image of 64 pixels
    costs less than a millisecond.

    Raises:
        ValueError, TypeError: an argument out of range.

    >>> from fastcka import data
    >>> images = data.Cues(100, label="texture", correlation={"shape": 0.5})
    >>> scene = images.scene(7)
    >>> scene.image.shape, int(scene.mask.sum()), scene.boxes
    ((64, 64, 3), 492, ((27, 18, 52, 43),))
    """

    def __init__(
        self,
        count: int,
        *,
        size: int = 64,
        seed: int = 0,
        label: str = "shape",
        mixture: float = 0.5,
        correlation: Mapping[str, float] | None = None,
        shuffled: Sequence[str] = (),
        conflict: bool = False,
        trigger: Trigger | None = None,
        objects: int = 1,
        transform: Callable | None = None,
    ):
        check_whole_number("count", count, 1)
        check_whole_number("size", size, 16)
        check_whole_number("seed", seed, 0)
        check_choice("label", label, RULES)
        check_share("mixture", mixture)
        correlation = dict(correlation or {})
        for cue, rho in correlation.items():
            check_choice("correlation", cue, CUES)
            check_share(f"correlation[{cue!r}]", rho)
        if label in correlation:
            raise ValueError(f"`correlation` names {label!r}, which is the label itself")
        if isinstance(shuffled, str):
            raise TypeError(f"`shuffled` must be a list of cues, but is {shuffled!r}")
        for cue in shuffled:
            check_choice("shuffled", cue, CUES)
        asked = {"label": [label], "correlation": correlation, "shuffled": shuffled}
        naming = [name for name, cues in asked.items() if "trigger" in cues]
        if naming and trigger is None:
            raise ValueError(
                f"`{naming[0]}` names the trigger, and there is none: say of what kind by `trigger`"
            )
        check_whole_number("objects", objects, 1)
        if objects > MOST:
            raise ValueError(f"`objects` must be at most {MOST}, but is {objects}")
        self.count, self.size, self.seed, self.trigger = count, size, seed, trigger
        self.transform = transform
        self._rules = {
            "label": label,
            "mixture": mixture,
            "correlation": correlation,
            "shuffled": tuple(shuffled),
            "conflict": bool(conflict),
            "share": 0.0 if trigger is None else trigger.share,
            "most": objects,
        }

    @property
    def classes(self) -> list[str]:
        """The names of the labels."""
        return list(CLASSES.get(self._rules["label"], NUMBERED))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        from PIL import Image

        if not 0 <= index < self.count:  # ends the loops that know of no length
            raise IndexError(f"there are {self.count} images, and none has the number {index}")
        scene = self.scene(index)
        image = Image.fromarray(scene.image)
        label = int(scene.factors["label"])
        return (image if self.transform is None else self.transform(image)), label

    def scene(self, index: int) -> Scene:
        """An image with the truth about it."""
        columns = self.factors([index])
        return render(
            {name: column[0] for name, column in columns.items()}, self.size, self.trigger
        )

    def factors(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """What the images are made of, a column a factor; nothing is drawn."""
        return draw(self.seed, indices, **self._rules)

    def describe(self) -> dict:
        """All that the images depend on but for their number, as JSON has it."""
        rules = {**self._rules, "shuffled": list(self._rules["shuffled"])}
        trigger = None if self.trigger is None else asdict(self.trigger)
        return {"format": FORMAT, "size": self.size, "seed": self.seed, **rules, "trigger": trigger}
