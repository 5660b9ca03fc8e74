"""Where what was made for the user is kept, to be found again, and who alone may make it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def folder() -> Path:
    """FASTCKA_CACHE, or a folder where caches usually are; it need not exist."""
    if named := os.environ.get("FASTCKA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcka"


def networks() -> Path:
    """Weights that were trained on this machine."""
    return folder() / "networks"


@contextmanager
def alone(lock: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """No other process is within the same lock; the system holds it, and a kill sets it free.

    Args:
        lock: a file, in a folder that exists; removed afterwards.
        busy: called with which process is there; where it returns, that one is waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes are not told apart
        yield
        return
    while True:
        with open(lock, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                number = file.read()
                busy(f"process {number}" if number else "another run")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks, as some of clusters
                pass
            if not _is_there(file, lock):  # whoever held it has removed it
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_there(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
