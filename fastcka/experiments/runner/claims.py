"""What a paper says that may or may not hold of other networks: a sentence, a number, a limit."""

import math
from dataclasses import dataclass

VERDICTS = HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"
SENSES = AT_LEAST, AT_MOST = (">=", "<=")


@dataclass(frozen=True)
class Claim:
    """A sentence with a number that decides it.

    Attributes:
        experiment: "E1", "E2", ….
        text: what is claimed, a colon, and what number decides it; in words that do not depend on
            image size or number of classes.
        sense, threshold: the claim holds where that number is >= or <= this. Thresholds are
            proposals: the papers show figures and give no numbers for most.
    """

    experiment: str
    text: str
    sense: str
    threshold: float

    def __post_init__(self):
        if self.sense not in SENSES:
            raise ValueError(f"`sense` must be '>=' or '<=', but is {self.sense!r}")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim on some networks.

    Attributes:
        claim: the claim.
        of: the networks, in words.
        measured: the number; None, NaN or infinite where it could not be measured.
        stderr: its standard error, where there is one.
        why: why it was not tested; needed where there is no number.

    >>> claim = Claim("E1", "the top is like the bottom", ">=", 0.5)
    >>> Verdict(claim, "vit", 0.7).verdict, Verdict(claim, "", None, why="no ViT").verdict
    ('holds', 'not tested')
    """

    claim: Claim
    of: str
    measured: float | None
    stderr: float | None = None
    why: str = ""

    def __post_init__(self):
        if self.verdict == UNTESTED and not self.why:
            raise ValueError(
                f"`why` must say why {self.claim.experiment} was not tested on {self.of!r}: "
                f"`measured` is {self.measured}"
            )

    @property
    def verdict(self) -> str:
        if not _is_number(self.measured):
            return UNTESTED
        more = self.measured >= self.claim.threshold
        less = self.measured <= self.claim.threshold
        return HOLDS if (more if self.claim.sense == AT_LEAST else less) else FAILS

    @property
    def within_error(self) -> bool:
        """Whether the number is so near the limit, 2 standard errors, that other images may differ.

        >>> Verdict(Claim("E1", "more", ">=", 0.5), "vit", 0.51, 0.01).within_error
        True
        """
        known = self.verdict != UNTESTED and self.stderr is not None
        return known and abs(self.measured - self.claim.threshold) < 2 * self.stderr

    def as_row(self) -> dict:
        """For tables and JSON."""

        def number(value: float | None) -> float | None:
            return float(value) if _is_number(value) else None

        claim = self.claim
        return {
            "experiment": claim.experiment,
            "claim": claim.text,
            "of": self.of,
            "measured": number(self.measured),
            "stderr": None if self.verdict == UNTESTED else number(self.stderr),
            "sense": claim.sense,
            "threshold": claim.threshold,
            "verdict": self.verdict,
            "within_error": self.within_error,
            "why": self.why,
        }

    @classmethod
    def from_row(cls, row: dict) -> "Verdict":
        """What `as_row` was made of."""
        claim = Claim(row["experiment"], row["claim"], row["sense"], row["threshold"])
        return cls(claim, row["of"], row["measured"], row["stderr"], row["why"])


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
