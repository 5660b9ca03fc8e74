"""What an experiment has found: arrays, claims, and how they came about; in a folder of its own."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastcka import array_file
from fastcka.experiments.runner.claims import Verdict

ARRAYS, FACTS = "result.safetensors", "result.json"
KIND = "experiment"


@dataclass(frozen=True)
class Result:
    """What an experiment has found.

    Attributes:
        arrays: float64 or int64, by name; a name says what it is and of which networks.
        facts: plain values that the figures need: names of layers and networks, units.
        verdicts: of every claim of the experiment.
        config: of the experiment.
        about: the networks, the images, versions and machine; filled in by the study.

    >>> import tempfile
    >>> result = Result({"x": np.arange(3.0)}, {"unit": "pixels"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Result.load(result.save(folder)).arrays["x"]
    array([0., 1., 2.])
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    config: Mapping = field(default_factory=dict)
    about: Mapping = field(default_factory=dict)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `result.safetensors` and, with all but the arrays, `result.json`; the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rest = {
            "facts": self.facts,
            "verdicts": [verdict.as_row() for verdict in self.verdicts],
            "config": self.config,
            "about": self.about,
        }
        rest = array_file.plain(rest, "result")
        text = json.dumps(rest, indent=1, ensure_ascii=False)
        with array_file.replacing(folder / FACTS) as file:
            file.write((text + "\n").encode())
        arrays = {name: np.asarray(value) for name, value in self.arrays.items()}
        array_file.write(folder / ARRAYS, KIND, [{"rest": text, **arrays}])
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Result":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no result.
            ValueError: it is damaged.
        """
        path = Path(folder) / ARRAYS
        with array_file.understood(path):
            (record,) = array_file.read(path, KIND)
            rest = json.loads(record.pop("rest"))
            verdicts = tuple(Verdict.from_row(row) for row in rest.pop("verdicts"))
            return cls(record, verdicts=verdicts, **rest)
