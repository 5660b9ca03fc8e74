import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent


def interpreter():
    """Skips where there is none that works."""
    triton = pytest.importorskip("triton")
    versions = [tuple(map(int, m.__version__.split(".")[:2])) for m in (triton, np)]
    if versions[0] <= (3, 6) and versions[1] >= (2, 4):
        pytest.skip("the interpreter of Triton up to 3.6 needs a NumPy before 2.4")


def interpreted(*arguments):
    """pytest in a process in which Triton interprets; numpy warns there of inf and NaN."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", str(TESTS.parent / "pyproject.toml"), f"--rootdir={TESTS.parent}"]
    command += ["-W", "ignore::RuntimeWarning", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_tile_of_the_triton_kernels_gives_the_definition_when_interpreted():
    interpreter()
    assert " passed" in interpreted(str(TESTS / "triton_interpreted.py"))


@pytest.mark.slow
def test_what_takes_longer_does_too():
    interpreter()
    assert " passed" in interpreted("-m", "slow", str(TESTS / "triton_interpreted.py"))


@pytest.mark.slow
def test_the_operations_hold_what_they_promise_by_triton_interpreted():
    interpreter()
    files = [f"test_{name}.py" for name in ("gram", "finish", "gram_finish", "hsic", "rbf")]
    assert " passed" in interpreted("-k", "triton", *(str(TESTS / name) for name in files))
