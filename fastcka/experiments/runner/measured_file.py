"""What was measured for one need, on disk: found again by what it depends on."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fastcka import array_file
from fastcka.analysis.receptive_field import ReceptiveFields
from fastcka.experiments.runner.needs import Comparison, Field, Need, Probe, in_words
from fastcka.experiments.runner.probing import Accuracies
from fastcka.experiments.runner.similarity import Means
from fastcka.result import CKAResult

Measured = CKAResult | Means | Accuracies | ReceptiveFields
KIND = "measurement"


def path_of(folder: str | os.PathLike, need: Need, identity: Mapping) -> Path:
    """The file of a need; another network, image or option gives another name."""
    text = json.dumps(array_file.plain([in_words(need), identity], "identity"), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    return Path(folder) / f"{name}.safetensors"


def write(path: Path, measured: Measured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array_file.write(path, KIND, [_record(measured)])


def read(path: Path, need: Need) -> Measured:
    """What `write` was given.

    Raises:
        FileNotFoundError, ValueError: it is not there, or damaged.
    """
    with array_file.understood(path):
        (record,) = array_file.read(path, KIND)
        if isinstance(need, Comparison):
            return CKAResult.from_record(record)
        if isinstance(need, Field):
            record = {
                name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for name, value in record.items()
            }
            return ReceptiveFields(**record | {"layers": tuple(record["layers"])})
        kind = Accuracies if isinstance(need, Probe) else Means
        tables: dict[str, dict] = {}
        for name in [name for name in record if "/" in name]:
            table, key = name.split("/", 1)
            tables.setdefault(table, {})[key] = record.pop(name)
        return kind(**tables, **record)


def _record(measured: Measured) -> dict:
    if isinstance(measured, CKAResult):
        return measured.as_record()
    if isinstance(measured, ReceptiveFields):
        return {
            name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in vars(measured).items()
        }
    record = {}
    for name, value in vars(measured).items():
        if isinstance(value, Mapping):
            record |= {f"{name}/{key}": np.asarray(entry) for key, entry in value.items()}
        else:
            record[name] = value
    return record
