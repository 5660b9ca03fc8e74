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

from fastcka.kernels import dispatch, native, speed
from fastcka.maths import finish as define_finish
from fastcka.maths import gram as define_gram

ROOT = Path(__file__).parents[1]
OPERATIONS = ("gram", "gram_finish", "finish", "hsic", "streaming")
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
    expected = {(op, f"fastcka:{b}") for op in OPERATIONS for b in backends}
    expected |= {("gram", f"{name}_fp32") for name in ("mm", "numpy", "ssyrk")}
    expected |= {("gram", "mm_fp16"), ("hsic", "mm_fp32"), ("matrix_rate", "mm")}
    expected |= {("gram_finish", f"{name}_loop_fp32") for name in ("mm", "numpy", "ssyrk")}
    expected |= {("gram_finish", "bmm_fp32"), ("streaming", "forward")}
    assert timed == expected | {("bandwidth", "sum"), ("bandwidth", "copy_")}


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


def test_the_triangle_comes_in_blocks_of_the_device(runner):
    assert [runner.triangle(n) for n in (4, 16, 64, 256)] == [1, 1, 0.625, 0.53125]
    runner.device = torch.device("cuda")
    assert [runner.triangle(n) for n in (16, 64, 256, 1024)] == [1, 1, 0.625, 0.53125]


def test_errors_are_those_of_float32_products(first):
    timed = [row for row in first[1] if row["op"] == "gram" and row["median_us"]]
    errors = [row["error"] for row in timed if row["variant"] != "mm_fp16"]
    assert errors
    assert all(0 < error < 1e-5 for error in errors)


def test_what_would_take_too_long_says_so(bench, runner, monkeypatch):
    monkeypatch.setattr(bench("baselines"), "TOO_SLOW", 0)
    bench("measurements").gram(runner, op="gram", shape="one", n=16, p=100)
    whys = {row["variant"]: row["why"] for row in rows_of(runner.rows.path)}
    assert whys.pop("mm_fp16") == "too slow: a call takes some 0 s"
    assert set(whys.values()) == {None}


def test_a_baseline_that_overflows_is_a_finding_and_no_failure(bench, runner):
    bench("measurements").gram(runner, op="gram", shape="wide", n=8, p=60_000)
    whys = {row["variant"]: row["why"] for row in rows_of(runner.rows.path)}
    assert whys["mm_fp16"] == "wrong: the error is nan, allowed is 0.01"
    assert runner.healthy


@pytest.mark.parametrize("name", ["mm_fp32", "numpy_fp32", "ssyrk_fp32"])
def test_baselines_are_the_lower_triangle_of_the_product(bench, name):
    x = torch.arange(12.0).reshape(3, 4)
    product = getattr(bench("baselines"), name)
    for values, room in ((x, x), (x.half(), torch.full_like(x, torch.nan))):
        found = torch.as_tensor(product(values, room)).tril()
        assert torch.equal(found, (x @ x.T).tril())


def test_rows_are_appended_and_what_is_left_out_is_named(smoke, first):
    before = smoke.output.read_text()
    code, _, printed = smoke("--minutes", "0")
    added = smoke.output.read_text().removeprefix(before)
    assert code == 0
    assert added != smoke.output.read_text()
    rows = [json.loads(line) for line in added.splitlines()]
    assert {row["op"] for row in rows} == {"rates", "tests", "speed_table", *OPERATIONS}
    assert {row["why"] for row in rows} == {"left out: the time was up"}
    assert "Left out, as 0 minutes were up: rates; tests; speed_table; gram one 16 100" in printed


def test_a_table_that_decides_what_runs_lies_beside_the_rows(smoke, first):
    (row,) = (row for row in first[1] if row["op"] == "speed_table")
    table = speed.read(smoke.output.with_name(row["note"]))
    assert {row.operation for row in table.rows} == set(dispatch.OPERATIONS)
    assert {row.n for row in table.rows} == {16}


def test_a_backend_that_is_wrong_is_named_beside_the_table(bench, runner, monkeypatch):
    def wrong(a, b, out):
        out.fill_(1.0)

    monkeypatch.setitem(dispatch.OPERATIONS["hsic_pairs"], "native", wrong)
    bench("measurements").speed_table(runner, "speed_table")
    assert not runner.healthy
    first, last = rows_of(runner.rows.path)
    assert (first["op"], first["n"], first["variant"]) == ("hsic_pairs", 16, "fastcka:native")
    assert first["why"].startswith("wrong: its error is")
    assert last["note"].endswith(".json")


def test_gpu_tests_are_counted_and_a_failure_is_no_success(bench, smoke, first, tmp_path):
    assert [row["note"] for row in first[1] if row["op"] == "tests"] == ["no test is marked gpu"]
    (tmp_path / "test_some.py").write_text(GPU_TESTS)
    note, passed = bench("gpu_tests").run_gpu_tests(tmp_path, 60)
    assert note.startswith("1 passed, 1 failed, 0 errors, 0 skipped")
    assert note.endswith("test_some::test_fails")
    assert not passed


def test_gpu_tests_that_hang_are_stopped(bench, tmp_path):
    assert bench("gpu_tests").run_gpu_tests(tmp_path, 0.01) == ("stopped after 0 s", False)


@pytest.mark.slow
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
        *(768, 2048, 5120, 100_352, 151_296, 200_704, 201_728),
        *(401_408, 453_888, 605_184, 802_816, 806_912),
    ]
    widths = [cases.FEATURES[shape] for shape in cases.ON_CPU]
    assert widths == sorted(widths)


@pytest.fixture(scope="module")
def cpu_run(tmp_path_factory):
    """The benchmarks of one small case: what pytest-benchmark stored, and the rows."""
    folder = tmp_path_factory.mktemp("cpu")
    only = ["-k", "vit_b_cls-64-float32-1t"]
    outputs = [f"--benchmark-json={folder / 'cpu.json'}", f"--rows={folder / 'rows.jsonl'}"]
    run_python("-P", "-m", "pytest", "bench/test_gram.py", *only, *outputs)
    (benchmark,) = json.loads((folder / "cpu.json").read_text())["benchmarks"]
    return benchmark, rows_of(folder / "rows.jsonl")


@pytest.mark.slow
def test_cpu_benchmarks_time_all_variants_of_a_case_in_one_run(cpu_run):
    benchmark, _ = cpu_run
    info = benchmark["extra_info"]
    variants = info["variants"]
    ours = next(name for name in variants if name.startswith("fastcka"))
    assert {"mm_fp32", "numpy_fp32", "ssyrk_fp32", "fastcka:torch"} <= variants.keys()
    assert {variant["rounds"] for variant in variants.values()} == {benchmark["stats"]["rounds"]}
    assert 0 < variants[ours]["median_us"] < 2e6 * benchmark["stats"]["max"]
    for variant in variants.values():
        assert 0 < variant["error"] < 1e-5
        assert variant["p20_us"] <= variant["median_us"] <= variant["p80_us"]
        assert variant["threads"] == 1
        if sys.platform == "linux":
            assert 0 <= variant["peak_mb"] < 50
    best = variants[info["best_baseline"]]["median_us"]
    assert best == min(variants[name]["median_us"] for name in variants if "fastcka" not in name)
    assert info["times_faster"] == pytest.approx(best / variants[ours]["median_us"])
    assert {"commit", "dirty", "isa", "device", "torch", "numpy"} <= info.keys()


@pytest.mark.slow
def test_rows_of_cpu_benchmarks_are_those_of_pytest_benchmark(cpu_run):
    benchmark, rows = cpu_run
    written = {row["variant"]: row["median_us"] for row in rows if row["op"] == "gram"}
    variants = benchmark["extra_info"]["variants"]
    assert written == {name: variant["median_us"] for name, variant in variants.items()}
    assert rows[-1]["command"].startswith("pytest bench/test_gram.py -k vit_b_cls-64-float32-1t")
    assert {row["variant"] for row in rows if row["op"] == "bandwidth"} == {"sum", "copy_"}


def test_variants_take_their_turns_in_the_setup_of_a_round(bench):
    order = []

    class Benchmark:
        disabled = False

        def pedantic(self, target, setup, rounds):
            for _ in range(rounds):
                setup()
                target()

    timer = Mock(sample=lambda call, enqueue_us: call())
    calls = {
        "ours": lambda: order.append("ours") or 2.0,
        "theirs": lambda: order.append("theirs") or 7.0,
    }
    timings = bench("timing").measure_beside(Benchmark(), timer, calls, 0, at_least=5)
    # One round to warm up, one to see how many fit; pytest-benchmark calls ours once more in each.
    assert order == ["ours", "theirs"] * 2 + ["ours", "theirs", "ours"] * 5
    assert [(t.median_us, t.rounds) for t in timings.values()] == [(2, 5), (7, 5)]


def test_nothing_is_timed_where_benchmarks_are_disabled(bench):
    calls = {"ours": Mock(), "theirs": Mock()}
    benchmark = Mock(disabled=True, pedantic=lambda call: call())
    assert bench("timing").measure_beside(benchmark, Mock(), calls, 1, 5) == {}
    assert (calls["ours"].call_count, calls["theirs"].call_count) == (1, 0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc of Linux")
def test_peak_memory_is_what_a_call_takes_at_most(bench):
    with bench("memory").Peak() as memory:
        for _ in range(3):
            bytearray(64 << 20)
    assert memory.above == pytest.approx(64 << 20, abs=4 << 20)
    with bench("memory").Peak() as memory:
        pass
    assert memory.above < 4 << 20


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
    # A process of its own, and no worker: there pytest-benchmark measures nothing.
    alone = {key: value for key, value in os.environ.items() if "XDIST" not in key}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=alone | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def whole(bench, tmp_path_factory):
    """The rows of whole comparisons of small networks."""
    path = tmp_path_factory.mktemp("whole") / "rows.jsonl"
    patient = ["--smoke", "--rounds", "2", "--layers", "leaves", "--limit", "100"]
    variants = ["--variants", "fastcka", "plain", "ckatorch"]
    with contextlib.redirect_stdout(io.StringIO()):
        bench("end_to_end").main([*patient, *variants, "--output", str(path)])
    return {row["variant"]: row for row in rows_of(path)}


@pytest.mark.slow
def test_a_whole_comparison_is_timed_and_right(whole):
    assert list(whole) == ["forward", "fastcka", "plain", "ckatorch"]
    assert whole["forward"]["error"] is None
    assert whole["fastcka"]["error"] < 1e-5
    assert whole["plain"]["error"] < 1e-2
    for variant in ("forward", "fastcka", "plain"):
        row = whole[variant]
        assert row["rounds"] == 2
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["layers"] == 94
    for variant in ("fastcka", "plain"):
        assert 0 < whole[variant]["cka_us"] < whole[variant]["median_us"]
        assert whole[variant]["cka_share"] is not None
    assert whole["forward"]["cka_us"] is whole["forward"]["cka_share"] is None


@pytest.mark.slow
def test_a_peer_that_is_missing_or_fails_has_a_row_that_says_why(whole):
    row = whole["ckatorch"]
    assert row["why"].startswith(("failed: ModuleNotFoundError", "failed: RuntimeError"))
    assert row["median_us"] is None


def test_growth_is_measured_and_its_exponent_is_that_of_the_power_law(bench, tmp_path):
    scaling, path = bench("scaling"), tmp_path / "rows.jsonl"
    with contextlib.redirect_stdout(io.StringIO()):
        scaling.main(["--smoke", "--output", str(path)])
    rows = rows_of(path)
    many = {row["variant"]: row for row in rows if row["op"] == "many_models"}
    assert list(many) == ["one_pass", "three_runs", "at_least", "forward"]
    assert {row["layers"] for row in many.values()} == {12}
    grown = [(row["op"], row["n"], row["p"], row["layers"]) for row in rows[4:]]
    assert grown == [
        *(("scaling_images", n, 3072, 24) for n in (64, 128, 256)),
        *(("scaling_features", 64, p, 24) for p in (512, 1024, 2048)),
        *(("scaling_layers", 64, 768, layers) for layers in (8, 16, 32)),
    ]
    assert all(row["median_us"] > 0 for row in rows)
    assert rows[-1]["note"].startswith("grows as layers to the power of ")
    assert scaling.exponent({1: 3.0, 10: 300.0, 100: 30_000.0}) == pytest.approx(2)


def test_a_worker_computes_nothing_unasked(bench):
    events = []

    class Connection:
        def recv(self):
            events.append("asked")
            if events.count("asked") == 3:
                raise EOFError

        def send(self, answer):
            events.append("answered")

    def answers():
        while True:
            events.append("computed")
            yield None

    bench("worker")._answer(Connection(), answers())
    assert events == ["asked", "computed", "answered"] * 2 + ["asked"]


def test_a_variant_that_takes_too_long_is_stopped(bench):
    worker = bench("worker")
    slow = worker.Worker("forward", worker.Networks("test_vit", "test_resnet", 64, 4, "blocks"))
    with pytest.raises(worker.Gone, match=r"^stopped after 0.01 s$"):
        slow.ask(0.01)
    assert not slow._process.is_alive()


def test_values_that_are_not_those_of_the_layers_are_remarked(bench):
    judged = bench("end_to_end").judged
    truth = np.array([[0.9, 0.5, 0.2], [0.3, 0.8, 0.1]])
    assert judged(truth + 1e-3, truth, None) == {"error": pytest.approx(1e-3), "note": None}
    overwritten = np.array([[0.3, 0.8, 0.1], [0.3, 0.8, 0.1]])
    found = judged(overwritten, truth, "version 1")
    assert found["error"] == pytest.approx(0.6)
    assert found["note"] == (
        "version 1; 1 layers have the values of the next one, which wrote over them"
    )
    cut = judged(np.array([[0.9, 0.5, 0.2], [0.3, 0.8, 0.0]]), truth, None)
    assert cut["note"] == "1 of 6 values are cut off at 0 or 1"
    assert judged(truth * math.nan, truth, None) == {
        "error": None,
        "note": "6 of 6 values are not finite",
    }
    assert judged(truth[:, :2], truth, None) == {
        "error": None,
        "note": "[2, 2] values, asked for were [2, 3]",
    }


def test_the_section_on_speed_is_what_the_rows_give(bench, capsys):
    assert bench("report").main(["--check"]) == 0, capsys.readouterr().out


@pytest.fixture
def report(bench, tmp_path):
    """Runs bench/report.py on rows that are made up: (rows) -> text of the section."""
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Title\n<!-- written by bench/report.py -->\nold\n<!-- until here -->\nend\n"
    )
    fixed = ["--readme", str(readme), "--results", str(tmp_path)]
    fixed += ["--picture", str(tmp_path / "speed.png")]

    def run(*rows, options=(), file="cpu_gram.jsonl"):
        if rows:
            (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return bench("report").main([*fixed, *options]), readme.read_text()

    return run


def row(variant, median_us, **columns):
    """A row of an early version, but for what is given: it lacks columns that came later."""
    common = {"op": "gram", "shape": "one", "n": 64, "p": 768, "layers": None, "dtype": "float32"}
    common |= {"threads": 2, "error": 1e-7, "share_of_floor": None, "why": None, "note": None}
    common |= {"device": "a CPU", "machine": "2 cores", "isa": "base", "torch": "2", "dirty": False}
    common |= {"commit": "0123456789", "date": "2026-01-01T00:00:00+00:00"}
    return common | {"variant": variant, "median_us": median_us} | columns


def test_a_report_shows_what_is_faster_and_what_is_not(report, tmp_path):
    code, text = report(
        row("fastcka:native", 50, share_of_floor=0.5),
        row("fastcka:torch", 10),
        row("mm_fp32", 100),
        row("ssyrk_fp32", 75, error=2e-6),
        row("fastcka:native", 400, n=256),
        row("mm_fp32", 100, n=256),
    )
    assert code == 0
    assert "faster in 1 of 2 cases" in text
    assert "Not faster: one, n = 256, float32, 2 threads: 0.25." in text
    assert "| 50.0 µs | `ssyrk_fp32` 75.0 µs | 1.50 | 1e-07 | 2e-06 | 50% |" in text
    assert "| 400 µs | `mm_fp32` 100 µs | 0.25 |" in text
    assert "a CPU, 2 cores, base, torch 2, commit 0123456, 2026-01-01" in text
    assert text.startswith("# Title\n")
    assert text.endswith("<!-- until here -->\nend\n")
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_a_report_takes_the_newest_rows_and_compares_within_a_run(report):
    later = {"date": "2026-02-02T00:00:00+00:00"}
    _, text = report(
        row("fastcka:native", 50),
        row("mm_fp32", 100),
        row("numpy_fp32", 20),
        row("fastcka:native", 25, **later),
        row("mm_fp32", 100, **later),
    )
    assert "| 25.0 µs | `mm_fp32` 100 µs | 4.00 |" in text
    assert "50.0 µs" not in text


def test_a_report_says_why_there_is_no_time(report):
    _, text = report(row("fastcka:native", None, why="too large"), row("mm_fp32", 100))
    assert "No case was timed." in text
    assert "| too large | `mm_fp32` 100 µs | – |" in text


def test_a_report_shows_whole_comparisons(report):
    case = {"op": "compare", "shape": "a x b leaves", "layers": 246, "p": None}
    _, text = report(
        row("forward", 2e6, **case),
        row("fastcka", 2.5e6, **case, cka_share=0.25, peak_mb=81.2),
        row("slow", None, **case, why="stopped after 300 s"),
        file="cpu_end_to_end.jsonl",
    )
    assert "a x b leaves: 246 layers, n = 64, 2 threads." in text
    assert "| fastcka | 2.50 s | 25.0% | – | 81 MB | 1e-07 |  |" in text
    assert "| slow | – | – | – | – | 1e-07 | stopped after 300 s |" in text


def test_a_check_of_the_report_writes_nothing(report, capsys):
    code, text = report(row("fastcka:native", 50), options=["--check"])
    assert code == 1
    assert "old" in text
    assert "run `python bench/report.py`" in capsys.readouterr().out
    assert report()[0] == 0
    assert report(options=["--check"])[0] == 0
