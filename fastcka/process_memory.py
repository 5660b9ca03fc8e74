"""Memory of this process, as the operating system counts it."""

import sys
from pathlib import Path

PROC = Path("/proc/self")


def resident() -> int:
    """Bytes that are in memory now; where the system does not tell, the most there ever were."""
    return _proc("VmRSS") or _ever()


def peak() -> int:
    """The most bytes that were in memory since `reset_peak`, or ever where that does nothing."""
    return _proc("VmHWM") or _ever()


def reset_peak() -> None:
    """Count the peak from here on; does nothing where the system keeps but one."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return


def _proc(name: str) -> int:
    """An entry of Linux's status, in bytes; 0 elsewhere."""
    try:
        lines = (PROC / "status").read_text().splitlines()
    except OSError:
        return 0
    found = (line.split() for line in lines)
    return next((1024 * int(words[1]) for words in found if words[0] == f"{name}:"), 0)


def _ever() -> int:
    try:
        import resource
    except ImportError:  # Windows
        raise RuntimeError(
            "the memory of a process cannot be measured here: on Linux and macOS it can"
        ) from None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
