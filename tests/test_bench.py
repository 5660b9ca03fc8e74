"""bench/ on tiny shapes: the code that runs on a GPU, but for the few lines only CUDA has."""

import contextlib
import importlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fastcka.kernels import native
from fastcka.maths import finish as define_finish
from fastcka.maths import gram as define_gram

ROOT = Path(__file__).parents[1]
GPU_TESTS = """
import pytest

@pytest.mark.gpu
def test_passes():
    pass

@pytest.mark.gpu
def test_fails():
    assert False

def test_is_not_for_a_gpu():
    assert False
"""


@pytest.fixture(scope="module")
def bench():
    """Imports a module of bench/, as `python bench/gpu.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # two threads on busy cores wait for each other
        yield importlib.import_module
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def smoke(bench, tmp_path_factory):
    """Runs bench/gpu.py here: (*options) -> exit code, rows, what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "empty").mkdir()

    def run(*options, tests=folder / "empty", output=folder / "rows.jsonl"):
        printed = io.StringIO()
        fixed = ["--device", "cpu", "--smoke", "--output", str(output), "--tests", str(tests)]
        with contextlib.redirect_stdout(printed):
            code = bench("gpu").main([*fixed, *options])
        return code, rows_of(output), printed.getvalue()

    run.output = folder / "rows.jsonl"
    return run


@pytest.fixture(scope="module")
def first(smoke):
    return smoke()


@pytest.fixture
def runner(bench, tmp_path):
    rows = bench("rows").Rows(tmp_path / "rows.jsonl", {"device": "here"})
    return bench("runner").Runner(torch.device("cpu"), bench("cases").SMOKE, rows)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_healthy_run_ends_well(first):
    code, rows, printed = first
    assert code == 0
    assert f"{len(rows)} rows appended" in printed


def test_every_row_says_what_it_is_and_where_it_comes_from(bench, first):
    keys = set(bench("rows").KEYS) | set(bench("provenance").provenance())
    assert {"commit", "dirty", "device", "torch", "threads", "isa", "date", "command"} <= keys
    for row in first[1]:
        assert set(row) == keys
        assert row["torch"] == torch.__version__


def test_every_operation_is_timed_by_every_backend_that_can_run(first):
    timed = {(row["op"], row["variant"]) for row in first[1] if row["median_us"]}
    backends = ["torch"] if native.module is None else ["torch", "native"]
    expected = {(op, f"fastcka:{b}") for op in ("gram", "finish", "hsic") for b in backends}
    expected |= {("gram", "float_mm"), ("bandwidth", "sum"), ("bandwidth", "copy_")}
    assert timed == expected | {("matrix_rate", "mm")}


def test_rows_hold_what_their_times_imply(first):
    for row in first[1]:
        if not row["median_us"]:
            assert row["why"] or row["note"]
            continue
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["rounds"] >= 7
        if row["op"] == "gram":
            n, p, seconds = row["n"], row["p"], row["median_us"] / 1e6
            assert row["tflop_per_s"] * 1e12 * seconds == pytest.approx(2 * n * n * p)
            assert row["gb_per_s"] * 1e9 * seconds == pytest.approx(2 * n * p)
            assert row["share_of_floor"] * row["median_us"] == pytest.approx(row["floor_us"])


def test_the_floor_is_the_slower_of_memory_and_matrix_unit(bench, runner):
    assert runner.floor(1, 1, torch.float16) is None
    runner.bandwidth, runner.rates = 100, {torch.float16: 10}
    assert runner.floor(300, 20, torch.float16) == 3
    assert runner.floor(300, 50, torch.float16) == 5
    assert [bench("measurements").triangle(n) for n in (16, 64, 256, 1024)] == [
        1,
        1,
        0.625,
        0.53125,
    ]


def test_errors_are_those_of_float32_products(first):
    errors = [row["error"] for row in first[1] if row["op"] == "gram" and row["median_us"]]
    assert errors
    assert all(0 < error < 1e-5 for error in errors)


def test_what_cannot_run_says_why(first):
    (why,) = {row["why"] for row in first[1] if row["variant"] == "mm_out_fp32"}
    assert why == "torch.mm takes out_dtype on CUDA only"


def test_rows_are_appended_and_what_is_left_out_is_named(smoke, first):
    before = smoke.output.read_text()
    code, _, printed = smoke("--minutes", "0")
    added = smoke.output.read_text().removeprefix(before)
    assert code == 0
    assert added != smoke.output.read_text()
    rows = [json.loads(line) for line in added.splitlines()]
    assert {row["op"] for row in rows} == {"rates", "tests", "gram", "finish", "hsic"}
    assert {row["why"] for row in rows} == {"left out: the time was up"}
    assert "Left out, as 0 minutes were up: rates; tests; gram one 16 100" in printed


def test_gpu_tests_are_counted_and_a_failure_is_no_success(bench, smoke, first, tmp_path):
    assert [row["note"] for row in first[1] if row["op"] == "tests"] == ["no test is marked gpu"]
    (tmp_path / "test_some.py").write_text(GPU_TESTS)
    note, passed = bench("gpu_tests").run_gpu_tests(tmp_path, 60)
    assert note.startswith("1 passed, 1 failed, 0 errors, 0 skipped")
    assert note.endswith("test_some::test_fails")
    assert not passed


def test_gpu_tests_that_hang_are_stopped(bench, tmp_path):
    assert bench("gpu_tests").run_gpu_tests(tmp_path, 0.01) == ("stopped after 0 s", False)


def test_one_failing_measurement_does_not_cost_the_others(bench, smoke, tmp_path, monkeypatch):
    def broken(runner, **case):
        raise TypeError("broken")

    monkeypatch.setattr(bench("measurements"), "finish", broken)
    monkeypatch.setattr(bench("gpu"), "run_gpu_tests", lambda folder, seconds: ("", True))
    code, rows, _ = smoke(output=tmp_path / "rows.jsonl")
    assert code == 1
    assert [row["why"] for row in rows if row["op"] == "finish"] == ["failed: TypeError: broken"]
    assert any(row["median_us"] for row in rows if row["op"] == "hsic")


@pytest.mark.parametrize(
    ("error", "recorded", "why"),
    [
        (lambda out: 0.5, 0.5, "wrong: the error is 0.5, allowed is 0.01"),
        (lambda out: math.nan, None, "wrong: the error is nan, allowed is 0.01"),
        (lambda out: torch.zeros(2) @ torch.zeros(3), None, "failed: RuntimeError"),
    ],
    ids=["off", "nan", "raises"],
)
def test_a_wrong_variant_is_not_timed(bench, runner, error, recorded, why):
    variant = bench("runner").Variant("mine", lambda: 1, error)
    assert runner.run([variant], op="gram") == {}
    (row,) = rows_of(runner.rows.path)
    assert row["why"].startswith(why)
    assert (row["median_us"], row["error"]) == (None, recorded)
    assert not runner.healthy


def test_what_does_not_fit_is_skipped(bench, runner, monkeypatch):
    monkeypatch.setattr(runner, "free_memory", lambda: 10_000)
    bench("measurements").gram(runner, op="gram", shape="one", n=16, p=100)
    bench("measurements").hsic(runner, op="hsic", layers=30, n=16)
    for row in rows_of(runner.rows.path):
        assert row["median_us"] is None
        assert row["why"].startswith("does not fit: needs 0.0")
    assert runner.healthy


def test_an_unknown_column_is_refused(runner):
    with pytest.raises(KeyError, match="no such column: speed"):
        runner.rows.add(op="gram", speed=1)


def test_variants_are_timed_in_turns(bench):
    order, times = [], {"a": iter(range(100)), "b": iter(range(1000, 1100))}

    class Timer:
        def enqueue_us(self, call):
            return None

        def sample(self, call, enqueue_us):
            order.append(call())
            return next(times[call()])

    timings = bench("timing").measure(Timer(), {"a": lambda: "a", "b": lambda: "b"}, 0, 5)
    assert order == ["a", "b"] * 6  # one round of warming up, which does not count
    assert timings["a"][:4] == (3, pytest.approx(1.8), pytest.approx(4.2), 5)
    assert timings["b"].median_us == 1003


def test_cuda_events_enclose_the_call_alone(bench, monkeypatch):
    """With stand-ins for the device: it sleeps while all is enqueued, and its cache is cold."""
    order = []

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing

        def record(self):
            order.append("record")

        def synchronize(self):
            order.append("synchronize")

        def elapsed_time(self, end):
            return 0.25

    timer = object.__new__(bench("timing").CudaTimer)
    timer._other_data = Mock(sum=lambda: order.append("read"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append(cycles))
    assert timer.sample(lambda: order.append("call"), enqueue_us=100) == 250
    assert order == [500_000, "read", "record", "call", "record", "synchronize"]


def test_the_reference_is_the_definition(bench):
    x = bench("cases").activations(9, 20_000, torch.float32)
    expected = define_finish.pack(define_gram.linear(x.numpy()), "unbiased")
    reference = bench("reference")
    np.testing.assert_allclose(reference.packed(reference.gram64(x)), expected, rtol=1e-10)
    off = 1.5 * torch.from_numpy(expected)
    assert reference.relative_error(off, torch.from_numpy(expected)) == pytest.approx(0.5)


def test_the_shapes_are_those_of_the_networks(bench):
    cases = bench("cases")
    assert sorted(cases.FEATURES.values()) == [
        *(768, 2048, 100_352, 151_296, 200_704, 201_728),
        *(401_408, 453_888, 605_184, 802_816, 806_912),
    ]
    assert {shape for shape, _ in cases.ON_CPU} <= set(cases.FEATURES)


def test_cpu_benchmarks_check_before_they_time(tmp_path):
    output = tmp_path / "cpu.json"
    run_python(
        "-m",
        "pytest",
        "bench/test_gram.py",
        f"--benchmark-json={output}",
        "-k",
        "float_mm and cls-64-float32",
    )
    (result,) = json.loads(output.read_text())["benchmarks"]
    assert 0 < result["extra_info"]["error"] < 1e-5
    assert result["extra_info"]["n"] == 64
    assert {"commit", "dirty", "isa", "threads"} <= result["extra_info"].keys()


def test_without_a_gpu_it_says_so_in_one_line():
    done = run_python("bench/gpu.py", code=2, CUDA_VISIBLE_DEVICES="")
    assert done.stdout == ""
    assert "needs a CUDA device" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.gpu
def test_it_runs_on_a_gpu(tmp_path):
    output = tmp_path / "rows.jsonl"
    run_python("bench/gpu.py", "--smoke", "--output", output, "--tests", tmp_path)
    times = {(r["op"], r["variant"]): r["median_us"] for r in rows_of(output)}
    assert times["gram", "mm_out_fp32"] > 0
    assert times["gram", "fastcka:torch"] > 0


def run_python(*arguments, code=0, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_whole_comparison_is_timed_and_right(bench, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    bench("end_to_end").main(["--smoke", "--rounds", "2", "--output", str(rows)])
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["variant"] for row in found] == ["forward", "fastcka", "plain"]
    assert found[0]["error"] is None
    assert found[1]["error"] < 1e-5
    assert found[2]["error"] < 1e-2
    assert all(row["rounds"] == 2 and row["median_us"] > 0 for row in found)
    assert "CKA part of fastcka over plain torch" in capsys.readouterr().out
