"""What is made for the user is made by one process at a time, and a kill locks nobody out."""

import os
import subprocess
import sys
import threading

import pytest

import fastcka.cache
from fastcka.cache import alone

pytest.importorskip("fcntl")

# The file itself: with the package comes torch.
HOLDER = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("cache", sys.argv[2])
cache = module_from_spec(spec)
spec.loader.exec_module(cache)
with cache.alone(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / ".lock"


@pytest.fixture
def holder(lock):
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(lock), fastcka.cache.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def refuse(other):
    raise ValueError(f"{other} is there")


def test_who_comes_second_is_told_which_process_is_there(lock, holder):
    with pytest.raises(ValueError, match=f"^process {holder.pid} is there$"), alone(lock, refuse):
        pass
    assert lock.exists()  # still the other's


def test_a_lock_can_be_waited_for(lock, holder):
    told = []

    def wait(other):
        told.append(other)
        threading.Timer(0.2, holder.stdin.close).start()

    with alone(lock, wait):
        assert lock.read_text() == str(os.getpid())
        with (
            pytest.raises(ValueError, match=f"process {os.getpid()} is there"),
            alone(lock, refuse),
        ):
            pass
    assert told == [f"process {holder.pid}"]
    assert not lock.exists()


def test_a_kill_sets_a_lock_free(lock, holder):
    holder.kill()
    holder.wait()
    assert lock.read_text() == str(holder.pid)
    with alone(lock, refuse):
        pass
    assert not lock.exists()
