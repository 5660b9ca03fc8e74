"""What earlier commands have found in the folder of a study, where it is of the same study."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from fastcka import array_file
from fastcka.experiments.runner.result import Result

# Of `Study.about`, what makes numbers comparable.
SAME = ("subjects", "sample", "shots", "autocast", "probed")


def earlier(folder: Path, names: Iterable[str], about: Mapping) -> dict[str, Result]:
    """The results of some experiments, by name, that are there and were made with these settings.

    Args:
        folder: of the study; an experiment has a folder of its name in it.
        about: of the study under way, as `Study.about`.
    """
    now = _settings(json.loads(json.dumps(array_file.plain(about, "about"))))
    found = {}
    for name in names:
        with suppress(FileNotFoundError, ValueError):  # none, or one that cannot be read any more
            result = Result.load(folder / name)
            if _settings(result.about) == now:
                found[name] = result
    return found


def _settings(about: Mapping) -> list:
    images, versions = about.get("images", {}), about.get("versions", {})
    return [*(about.get(key) for key in SAME), images.get("sha256"), versions.get("fastcka")]
