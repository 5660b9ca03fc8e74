"""The highest memory of this process while something runs."""

import ctypes
from contextlib import suppress
from pathlib import Path


class Peak:
    """`with Peak() as memory:`, then `memory.before` and `memory.peak`, in bytes.

    Both stay None where there is no /proc of Linux. What libraries keep between calls was there
    before, so it does not show.
    """

    before = peak = None

    def __enter__(self):
        # What was freed goes back first: a call that takes it again would seem to need nothing.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak falls to what is resident
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_):
        if self.before is not None:
            self.peak = _status("VmHWM")

    @property
    def above(self):
        """What was taken beyond what was resident before."""
        return None if self.before is None else self.peak - self.before


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
