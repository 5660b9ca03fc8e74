"""The networks of a study: what family each is of, and of which other it is a variant."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from fastcka.capture.modules import named
from fastcka.capture.presets import PRESETS
from fastcka.models import Network

TRANSFORMER, MIXER, CNN = "transformer", "mixer", "CNN"
OTHER = "other"  # of which no claim is made
# In a block: the MLP of tokens, that of ResMLP, and the gate of gMLP.
OF_TOKENS = ("mlp_tokens", "linear_tokens", "mlp_channels.gate")
# In what a variant differs from the network that it is one of.
LESS_DATA = "less-data"  # trained on so many per cent of the images
NO_SKIP = "no-skip"  # trained without the skip connections of this block
SKIP_CUT = "skip-cut"  # the other itself, those of this block cut after training
FINE_TUNED = "fine-tuned"  # trained on, from the other's weights, for another task
OTHER_SEED = "other-seed"  # trained alike from other random numbers
KINDS = {
    LESS_DATA: "per cent of the images",
    NO_SKIP: "the number of the block",
    SKIP_CUT: "the number of the block",
    FINE_TUNED: None,
    OTHER_SEED: None,
}


@dataclass(frozen=True)
class Variant:
    """How a network differs from another of the study.

    Attributes:
        kind: "less-data", "no-skip", "skip-cut", "fine-tuned" or "other-seed".
        of: the name of the other.
        value: per cent of the images, or the number of the block; None for the other kinds.

    >>> Variant("less-data", "vit", 10).value
    10
    """

    kind: str
    of: str
    value: float | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, but is {self.kind!r}")
        meaning = KINDS[self.kind]
        if meaning is not None and self.value is None:
            raise ValueError(f"a variant of kind {self.kind!r} needs a value: {meaning}")
        if meaning is None and self.value is not None:
            raise ValueError(f"a variant of kind {self.kind!r} has no value, but {self.value} came")
        if self.kind == LESS_DATA and not 0 < self.value < 100:
            raise ValueError(f"less data is more than 0 and less than 100 %, but is {self.value}")

    def in_words(self) -> str:
        """How it differs, for readers.

        >>> Variant("less-data", "vit", 10).in_words()
        'like vit, on 10 % of its images'
        """
        value = "" if self.value is None else f"{self.value:g}"
        how = {
            LESS_DATA: f"like {self.of}, on {value} % of its images",
            NO_SKIP: f"like {self.of}, trained without the skip connections of block {value}",
            SKIP_CUT: f"{self.of} itself, the skip connections of block {value} cut post hoc",
            FINE_TUNED: f"{self.of}, trained on for another task",
            OTHER_SEED: f"like {self.of}, from other random numbers",
        }
        return how[self.kind]


@dataclass(frozen=True, eq=False)
class Subject:
    """One network of a study.

    Attributes:
        name: in results and figures, as `models.labels` makes it.
        network: with its preprocessing.
        variant: what it is of another; None is a network in its own right.
    """

    name: str
    network: Network
    variant: Variant | None = None

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return named(self.network.module)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The names of its blocks, in order."""
        return tuple(tap.pattern for tap in PRESETS["blocks"](self.modules))

    @cached_property
    def family(self) -> str:
        """By what its blocks hold: attention heads, token MLPs, convolutions, or none of these."""
        within = [
            module
            for name, module in self.modules.items()
            if name.startswith(tuple(f"{block}." for block in self.blocks))
        ]
        # Hiera's have `heads`.
        heads = (getattr(module, "num_heads", getattr(module, "heads", None)) for module in within)
        if any(isinstance(count, int) for count in heads):
            return TRANSFORMER
        if any(f"{block}.{part}" in self.modules for block in self.blocks for part in OF_TOKENS):
            return MIXER
        # One of a single pixel is a linear map of its channels.
        wide = (isinstance(one, nn.Conv2d) and max(one.kernel_size) > 1 for one in within)
        return CNN if any(wide) else OTHER

    @cached_property
    def has_class_token(self) -> bool:
        module = self.network.module
        return bool(getattr(module, "num_prefix_tokens", 0)) and (
            getattr(module, "cls_token", None) is not None
        )

    @cached_property
    def fine(self) -> tuple[str, ...]:
        """The layers of Raghu et al., or every leaf where their list does not fit the network."""
        try:
            PRESETS["raghu"](self.modules)
        except ValueError:
            return ("leaves",)
        return ("raghu",)


class Subjects(Mapping[str, Subject]):
    """The networks of a study by name, those in their own right first asked for.

    Raises:
        ValueError: two have one name, or a variant is of none of the others.
    """

    def __init__(self, subjects: Iterable[Subject]):
        self._subjects: dict[str, Subject] = {}
        for subject in subjects:
            if subject.name in self._subjects:
                raise ValueError(f"two networks are called {subject.name!r}: name them apart")
            self._subjects[subject.name] = subject
        for subject in self._subjects.values():
            if subject.variant is not None and subject.variant.of == subject.name:
                raise ValueError(f"{subject.name!r} cannot be a variant of itself")
            if subject.variant is not None and subject.variant.of not in self._subjects:
                raise ValueError(
                    f"{subject.name!r} is a variant of {subject.variant.of!r}, which is not in the "
                    f"study; its networks are {', '.join(self._subjects)}"
                )

    def __getitem__(self, name: str) -> Subject:
        return self._subjects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._subjects)

    def __len__(self) -> int:
        return len(self._subjects)

    def own(self, *families: str) -> list[Subject]:
        """Those that are no variants, of some families or of all."""
        return [
            one
            for one in self._subjects.values()
            if one.variant is None and (not families or one.family in families)
        ]

    def variants(self, kind: str, of: str | None = None) -> list[Subject]:
        """Those of a kind, of one network or of any, by rising value."""
        found = [
            one
            for one in self._subjects.values()
            if one.variant is not None and one.variant.kind == kind and of in (None, one.variant.of)
        ]
        return sorted(found, key=lambda one: (one.variant.of, one.variant.value or 0))
