"""What a trained network depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fastcka.data.cues.dataset import FORMAT
from fastcka.data.cues.factors import CUES
from fastcka.options import check_choice, check_share, check_whole_number

LABELS = tuple(cue for cue in CUES if cue != "trigger")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on images with known cues.

    Attributes:
        model: one of `fastcka list models 'fastcka_*'`.
        label: the cue that is learned: "shape", "texture" or "background".
        fraction: share of the pool of training images, above 0 to 1. The number of steps stays.
        correlation: by cue, how often it follows the label in the training images, 0 to 1.
        seed: of the first weights, and of the order and the turning of the images.
        start: SHA-256 of the weights to start from, or None for first weights at random.
        images: how many are seen, in batches of `batch_size`.
        pool: how many different ones there are.
        learning_rate: of AdamW at its height; it rises for `warmup` steps and falls along a cosine.
        muon: learning rate of Muon [Jordan et al. 2024], which takes the weight matrices within the
            blocks of transformers and mixers; 0 leaves all to AdamW.
        weight_decay: of both.
        mask: weight of a second task: the mask of the object, from the features of an early layer.
    """

    model: str
    label: str = "shape"
    fraction: float = 1.0
    correlation: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    start: str | None = None
    images: int = 160_000
    batch_size: int = 64
    pool: int = 50_000
    learning_rate: float = 2e-3
    muon: float = 0.01
    warmup: int = 300
    weight_decay: float = 0.05
    mask: float = 1.0

    def __post_init__(self):
        check_choice("label", self.label, LABELS)
        check_share("fraction", self.fraction)
        for cue, rho in self.correlation.items():
            check_choice("correlation", cue, LABELS)
            check_share(f"correlation[{cue!r}]", rho)
        for name in ("images", "batch_size", "pool"):
            check_whole_number(name, getattr(self, name), 1)
        for name in ("seed", "warmup"):
            check_whole_number(name, getattr(self, name), 0)
        if self.pool < self.batch_size:
            raise ValueError(
                f"`pool` must be a batch of {self.batch_size} images at least, but is {self.pool}"
            )
        if self.fraction * self.pool < self.batch_size:
            raise ValueError(
                f"`fraction` must leave a batch of {self.batch_size} images of the {self.pool:,}, "
                f"{self.batch_size / self.pool:.2g} of them or more, but is {self.fraction!r}"
            )

    @property
    def turned(self) -> bool:
        """Whether images are shown in all positions: not where a texture tells the label."""
        return "texture" not in self.correlation

    @property
    def steps(self) -> int:
        return -(-self.images // self.batch_size)

    def described(self) -> dict:
        return {**asdict(self), "correlation": dict(self.correlation), "format": FORMAT}

    @property
    def key(self) -> str:
        """The same for the same recipe, and only for it."""
        return hashlib.sha256(json.dumps(self.described(), sort_keys=True).encode()).hexdigest()[
            :16
        ]


def unlike_plain(described: Mapping, start: str | None = None) -> str:
    """In what a recipe differs from the plain one of its network, in words.

    Args:
        described: the recipe as `Recipe.described` gives it.
        start: the name of the weights it starts from, where that is known.

    >>> unlike_plain(Recipe("fastcka_vit_mini", label="texture", fraction=0.1).described())
    'label texture; fraction 0.1'
    """
    plain = Recipe(described["model"]).described()
    return "; ".join(
        f"{key} {(start or value) if key == 'start' else value}"
        for key, value in described.items()
        if value != plain.get(key)
    )
