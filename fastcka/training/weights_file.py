"""Trained weights on disk: half precision, with what is known of them in the header."""

import hashlib
import json
from pathlib import Path

from torch import nn

from fastcka import array_file


def write_weights(path: Path, network: nn.Module, known: dict) -> None:
    """The weights of a network, and how they came about, in a safetensors file."""
    from safetensors.torch import save

    weights = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with array_file.replacing(path) as file:
        file.write(save(weights, metadata={array_file.KEY: json.dumps(known, sort_keys=True)}))


def known_of(path: Path) -> dict:
    """How weights came about.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by `write_weights`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "np") as file:
            known = json.loads((file.metadata() or {})[array_file.KEY])
        if not isinstance(known["recipe"], dict):
            raise TypeError("its recipe is none")
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no weights of fastcka's: {error}") from None
    return known


def sha256(path: Path) -> str:
    """By which weights to start from are known again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
