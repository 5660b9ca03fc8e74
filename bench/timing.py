"""Times of calls: taken in turns, each a median with the 20th and 80th percentile."""

import statistics
import time
from typing import NamedTuple

import torch

# Seconds of a round that needs no warming up beside the check, and of which three are enough: calls
# of seconds vary by little.
LONG = 10


class Timing(NamedTuple):
    median_us: float
    p20_us: float
    p80_us: float
    rounds: int
    enqueue_us: float | None  # what the call costs the host; None where host and device are one


class CpuTimer:
    """Wall clock. Caches are as the previous call left them."""

    def settle(self, call):
        """Let the threads of another library fall asleep, and wake those that the call needs.

        Each library has threads of its own, which spin for a while when their work is done. Where
        they meet those of the next variant on one core, a call of 40 µs takes 16 ms.
        """
        if torch.get_num_threads() > 1:
            time.sleep(0.005)
            end = time.monotonic() + 0.001
            call()
            while time.monotonic() < end:
                call()

    def enqueue_us(self, call):
        return None

    def sample(self, call, enqueue_us):
        self.settle(call)
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6


# Microseconds in which a call is enqueued, where it does not wait for the device.
LONGEST = 20_000


class CudaTimer:
    """A pair of events around the call, with a cold L2 and without gaps that the host makes."""

    def __init__(self, device):
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._other_data = torch.rand(max(4 * l2, 64 << 20) // 4, device=device)
        # A second of work lifts the clocks of a GPU that has been idle.
        end = time.monotonic() + 1
        while time.monotonic() < end:
            self._other_data.sum()
            torch.cuda.synchronize()

    def enqueue_us(self, call):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        enqueued = time.perf_counter()
        torch.cuda.synchronize()
        return (enqueued - start) * 1e6

    def sample(self, call, enqueue_us):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        # On an idle device the events would time how fast the host enqueues. So the device spins
        # until all is enqueued: twice as long, at some 2,000 cycles a microsecond. A call of many
        # milliseconds waits for the device itself, which nothing hides.
        torch.cuda._sleep(int(2_000 * (2 * min(enqueue_us, LONGEST) + 50)))
        # Reading evicts as writing does, and leaves no dirty lines for the call to write back.
        self._other_data.sum()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3  # from milliseconds


def measure(timer, calls, seconds, at_least, at_most=200):
    """Time every call in turns, so that clocks and neighbours touch all alike.

    Args:
        calls: name -> function without arguments.
        seconds: for all of them together, `at_least` rounds permitting.

    Returns:
        name -> Timing
    """
    enqueue = {}
    for name, call in calls.items():
        for _ in range(2):  # the first call loads modules, picks algorithms, compiles
            call()
        enqueue[name] = timer.enqueue_us(call)
    _rounds(timer, calls, enqueue, seconds / 3, 1, at_most)
    samples = _rounds(timer, calls, enqueue, seconds, at_least, at_most)
    return {name: _summary(times, enqueue[name]) for name, times in samples.items()}


def measure_beside(benchmark, timer, calls, seconds, at_least, at_most=200):
    """The same in the rounds of pytest-benchmark, which itself times the first call.

    All take their turns in its `setup`, the first too: what it does between `setup` and its call is
    long enough for threads to fall asleep. Where benchmarks are disabled nothing is timed, and the
    result is empty.
    """
    first = next(iter(calls.values()))
    if benchmark.disabled:
        benchmark.pedantic(first)
        return {}
    samples = {name: [] for name in calls}

    def take_turns():
        for name, call in calls.items():
            samples[name].append(timer.sample(call, None))

    def seconds_of_a_round():
        start = time.monotonic()
        take_turns()
        return time.monotonic() - start

    if seconds_of_a_round() > LONG:
        more, rounds = 2, 3
    else:  # that was to warm up; the second says how many fit
        more = rounds = int(min(at_most, max(at_least, seconds / seconds_of_a_round())))
    benchmark.pedantic(first, setup=take_turns, rounds=more)
    return {name: _summary(times[-rounds:], None) for name, times in samples.items()}


def _rounds(timer, calls, enqueue, seconds, at_least, at_most):
    """name -> microseconds of each round."""
    samples = {name: [] for name in calls}
    end = time.monotonic() + seconds
    for done in range(at_most):
        if done >= at_least and time.monotonic() >= end:
            break
        for name, call in calls.items():
            samples[name].append(timer.sample(call, enqueue[name]))
    return samples


def _summary(times, enqueue_us):
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), fifths[0], fifths[3], len(times), enqueue_us)
