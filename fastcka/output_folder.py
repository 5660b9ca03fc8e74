"""The folder of one run: chosen so that nothing is lost, and written by one run at a time."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastcka.cache import alone
from fastcka.checkpoint import forget, states

LOCK = ".lock"


@contextmanager
def output_folder(
    given: str | None,
    default: Path,
    *,
    result: str,
    state: str,
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[Path]:
    """The folder to write to, made and locked; empty ones are gone afterwards.

    Args:
        given: by the user; None takes `default`, or the first free of default-2, default-3, ….
        result: name of the file that shows a finished run.
        state: of the file that shows an unfinished one, or of one for each of its processes.
        overwrite: replace what is there. resume: take the folder of an unfinished run.

    Raises:
        ValueError: a result or an unfinished run is there, or another run is writing there.
        OSError: the folder cannot be made or written to.
    """

    def finished(folder: Path) -> bool:
        return (folder / result).exists()

    def unfinished(folder: Path) -> bool:
        return bool(states(folder / state))

    def taken(folder: Path) -> bool:
        return _locked(folder) or (not resume if unfinished(folder) else finished(folder))

    if given is None:
        more = (default.with_name(f"{default.name}-{number}") for number in itertools.count(2))
        places = itertools.chain([default], more)
        if not overwrite:
            places = itertools.dropwhile(taken, places)
        folder = next(places)
    else:
        folder = Path(given)
        if finished(folder) and not overwrite and not (resume and unfinished(folder)):
            raise ValueError(
                f"{folder / result} is there already: give another --output, or add --overwrite"
            )
        if unfinished(folder) and not (resume or overwrite):
            raise ValueError(
                f"{folder} holds an unfinished run: add --resume to go on with it, --overwrite to "
                "begin anew, or give another --output"
            )
    make(folder)
    try:
        with writing(folder / LOCK, folder):
            if overwrite and not resume:
                forget(folder / state)
            yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()  # where nothing came to be written


def make(folder: Path) -> None:
    """Before anything runs: a folder that cannot be written is known at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the folder {folder}: {error.strerror}; give another --output"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to the folder {folder}; give another --output")


def _locked(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with writing(folder / LOCK, folder):
            return False
    except ValueError:
        return True


@contextmanager
def writing(lock: Path, place: Path) -> Iterator[None]:
    """Alone in `place`.

    Raises:
        ValueError: another run is there.
    """

    def refuse(other: str) -> None:
        raise ValueError(
            f"{other} is writing to {place}: wait for it, or give another --output"
        ) from None

    with alone(lock, refuse):
        yield
