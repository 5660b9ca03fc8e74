"""Ctrl-C and SIGTERM stop at once, but for the middle of adding up."""

import signal
import threading

import pytest

from fastcka.interrupts import SIGNALS, Interrupts


@pytest.fixture(autouse=True)
def handlers_as_before():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_waits_for_the_end_of_a_step_and_not_elsewhere(number, kind):
    done = []
    with pytest.raises(kind) as caught, Interrupts() as interrupts:  # noqa: PT012
        with interrupts.after():
            signal.raise_signal(number)
            done.append("step")
        done.append("behind it")
    assert done == ["step"]
    with pytest.raises(kind), Interrupts():
        signal.raise_signal(number)
    if kind is SystemExit:
        assert caught.value.code == 143


def test_an_error_in_a_step_comes_before_a_signal_that_waits():
    with (  # noqa: PT012
        pytest.raises(ValueError, match="in the step"),
        Interrupts() as interrupts,
        interrupts.after(),
    ):
        signal.raise_signal(signal.SIGINT)
        raise ValueError("in the step")


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="children do not signal here")
def test_what_a_loader_raises_when_a_child_dies_waits_too():
    def fails(number, frame):
        raise RuntimeError("a worker died")

    before, done = signal.signal(signal.SIGCHLD, fails), []
    try:
        with pytest.raises(RuntimeError, match="a worker died"), Interrupts() as interrupts:  # noqa: PT012
            with interrupts.after():
                signal.raise_signal(signal.SIGCHLD)
                done.append("step")
            done.append("behind it")
        assert done == ["step"]
        assert signal.getsignal(signal.SIGCHLD) is fails
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_signals_are_forgotten_where_all_ends_anyway():
    with Interrupts() as interrupts, interrupts.after(heed=False):
        signal.raise_signal(signal.SIGTERM)


def test_the_callers_own_handler_is_called():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with Interrupts() as interrupts, interrupts.after():
            signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interrupts():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone():
    found = []

    def look():
        with Interrupts() as interrupts, interrupts.after():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
