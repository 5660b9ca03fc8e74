"""Where what was made for the user is kept, to be found again."""

import os
from pathlib import Path


def folder() -> Path:
    """FASTCKA_CACHE, or a folder where caches usually are; it need not exist."""
    if named := os.environ.get("FASTCKA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcka"


def networks() -> Path:
    """Weights that were trained on this machine."""
    return folder() / "networks"
