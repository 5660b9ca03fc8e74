"""Ctrl-C and SIGTERM: at once, but never in the middle of adding up."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Makes SIGTERM an exception, as SIGINT is one, and lets both wait for the end of a step.

    Handlers of the caller's own are called in their place. Signals can be handled in the main
    thread alone; elsewhere nothing changes.

    >>> with Interrupts() as interrupts:
    ...     with interrupts.after():
    ...         pass  # a signal that comes here does what it does behind the block
    """

    def __init__(self):
        self._before: dict = {}
        self._waiting = False  # whether a signal has to wait
        self._came: int | None = None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            # None: it was set outside of Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def after(self, heed: bool = True) -> Iterator[None]:
        """Let signals wait until the block is done; then, without `heed`, forget them.

        Among them the death of a child, on which DataLoaders raise an error wherever the main
        thread is.
        """
        children = self._before and hasattr(signal, "SIGCHLD")
        handler = signal.getsignal(signal.SIGCHLD) if children else None
        died = []
        if callable(handler):
            signal.signal(signal.SIGCHLD, lambda number, frame: died.append(number))
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            came, self._came = self._came, None
            if callable(handler):
                signal.signal(signal.SIGCHLD, handler)
        if heed and came is not None:
            self._act(came, None)
        if heed and died:
            handler(died[0], None)

    def _handle(self, number: int, frame) -> None:
        if self._waiting:
            self._came = number
        else:
            self._act(number, frame)

    def _act(self, number: int, frame) -> None:
        handler = self._before[number]
        if callable(handler):  # Python's own for SIGINT raises KeyboardInterrupt
            handler(number, frame)
        elif handler is not signal.SIG_IGN:
            raise SystemExit(128 + number)
