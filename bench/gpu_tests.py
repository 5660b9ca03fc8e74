"""Running the tests marked gpu, but the slow ones, in a process of their own."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

from provenance import ROOT

# Most of their time is compiling; each holds a context on the GPU.
PROCESSES = 4


def run_gpu_tests(folder, seconds):
    """How the tests marked gpu went, in words, and whether none failed."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        options = ["-v", "-m", "gpu and not slow", f"--junit-xml={report}", f"--rootdir={ROOT}"]
        options += ["-c", str(ROOT / "pyproject.toml"), str(folder)]
        if find_spec("xdist"):
            options += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
        command = [sys.executable, "-P", "-m", "pytest", *options]
        # cuBLAS is deterministic, which tests ask of torch, with a workspace of fixed size only.
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | os.environ
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired as stopped:
            said = (stopped.stdout or b"").decode(errors="replace").strip()
            print(said, file=sys.stderr)  # which tests there were time for
            return f"stopped after {seconds:.0f} s", False
        if not report.exists():
            return f"pytest did not run: {(done.stdout + done.stderr).strip()[-300:]}", False
        suite = ElementTree.parse(report).getroot().find("testsuite")
    tests, failures, errors, skipped = (
        int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")
    )
    if tests == 0:
        return "no test is marked gpu", True
    passed = tests - failures - errors - skipped
    note = f"{passed} passed, {failures} failed, {errors} errors, {skipped} skipped"
    if failures or errors:
        note += ": " + ", ".join(_failed(suite))
    return note, not failures and not errors


def _failed(suite):
    cases = [case for case in suite if case.find("failure") is not None]
    cases += [case for case in suite if case.find("error") is not None]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in cases]
    return [*names[:20], "..."] if len(names) > 20 else names
