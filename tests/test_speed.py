"""Measured tables decide which backend runs, and measuring makes them."""

import json
import re

import pytest
import torch
from torch import nn

from fastcka import MinibatchCKA, compare, gram_queue
from fastcka.cli import main
from fastcka.kernels import (
    benchmark,
    dispatch,
    finish,
    gram,
    gram_finish,
    hsic_pairs,
    measure_speed,
    native,
    speed,
    torch_finish,
    triton_versions,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HALF, FLOAT = torch.float16, torch.float32
SHIPPED = speed.SHIPPED  # no test looks there


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the user's tables; few features are measured."""
    monkeypatch.setenv("FASTCKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(benchmark.WORK, "cpu", benchmark.Work(128, 1 << 16))  # to be quick
    return tmp_path / "cache" / "speed"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU by name on which everything can run: what is chosen there is asked, never called."""
    monkeypatch.setattr(
        speed, "measured_as", lambda device: {"cuda": "Some GPU", "cpu": "Some CPU"}[device.type]
    )
    monkeypatch.setattr(native, "obstacle", lambda device: None)
    monkeypatch.setattr(triton_versions, "obstacle", lambda device: None)


def rows(times, operation="gram_finish", dtype="float16", n=64):
    """Rows of a case, from backend to median or to why there is none."""
    return [
        speed.Row(operation, dtype, n, backend, time, 1e-7, None)
        if not isinstance(time, str)
        else speed.Row(operation, dtype, n, backend, None, None, time)
        for backend, time in times.items()
    ]


def write(folder, rows, device="Some GPU", **versions):
    folder.mkdir(parents=True, exist_ok=True)
    threads = 3 if device == "Some CPU" else None
    table = speed.Table(device, speed.versions() | versions, "2030-01-01", threads, tuple(rows))
    path = folder / speed.file_name(device)
    path.write_bytes(speed.as_json(table))
    speed.forget()
    return path


def name_of(dtype=HALF, n=64, operation="gram_finish", device=GPU):
    return dispatch.name_of(operation, device, dtype, n)


def reasons(operation="gram_finish"):
    return {backend: why for backend, _, why in dispatch.explain(operation, GPU, HALF, 64)}


def test_without_a_table_torch_runs_on_a_gpu_and_native_on_a_cpu(gpu):
    assert name_of() == "torch"
    assert name_of(device=CPU) == "native"
    unmeasured = "nothing was measured on this GPU yet; `fastcka info --measure` does so"
    assert reasons("gram")["torch"] == unmeasured
    assert reasons("gram")["triton"] == "torch comes first"


@pytest.mark.parametrize("fastest", dispatch.BACKENDS)
def test_the_fastest_of_the_table_runs(gpu, cache, fastest):
    write(cache, rows({"native": 20.0, "triton": 20.0, "torch": 20.0} | {fastest: 10.0}))
    assert name_of() == fastest
    assert reasons().pop(fastest) == "the fastest here, 10.0 µs a call at n = 64"
    assert list(reasons().values()).count("slower, 20.0 µs a call") == 2


def test_what_cannot_run_gives_way_to_the_next(gpu, cache, monkeypatch):
    write(cache, rows({"torch": 30.0, "triton": 10.0, "native": 20.0}))
    monkeypatch.setattr(triton_versions, "obstacle", lambda device: "triton is not installed")
    assert name_of() == "native"
    assert reasons()["triton"] == "triton is not installed"
    monkeypatch.setattr(native, "obstacle", lambda device: "there are no native kernels")
    assert name_of() == "torch"


def test_a_gpu_of_amd_takes_triton_where_the_table_says_so(gpu, cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("FASTCKA_CACHE", str(cache.parent))
    monkeypatch.setattr(speed, "measured_as", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_versions, "release", lambda: (3, 8))
    write(cache, rows({"triton": 10.0, "torch": 30.0}))
    assert name_of() == "triton"
    monkeypatch.setattr(triton_versions, "release", lambda: (3, 7))
    assert name_of() == "torch"
    assert reasons()["triton"] == "AMD's GPUs need Triton 3.8"


def test_the_nearest_number_of_examples_counts_in_ratios(gpu, cache):
    few, many = {"native": 1.0, "torch": 9.0}, {"native": 9.0, "torch": 1.0}
    write(cache, [*rows(few, n=64), *rows(many, n=1024)])
    assert [name_of(n=n) for n in (1, 64, 255, 257, 544, 9999)] == ["native"] * 3 + ["torch"] * 3


def test_other_types_and_operations_go_by_what_was_measured_for_them_alone(gpu, cache):
    write(cache, rows({"triton": 1.0, "torch": 9.0}))
    assert name_of(HALF) == "triton"
    assert name_of(FLOAT) == name_of(torch.float64) == name_of(operation="gram") == "torch"
    ((_, _, why),) = (row for row in dispatch.explain("gram_finish", GPU, FLOAT, 64) if row[1])
    assert why == "the first here that can run"


def test_versions_are_chosen_by_the_type_and_the_number_of_examples(monkeypatch):
    asked, choose = [], dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *given: asked.append(given) or choose(*given))
    x = torch.randn(9, 5).half()
    for estimator in ("unbiased", "biased"):
        finish(gram(x), estimator=estimator)
        hsic_pairs(gram_finish([x, x.float()], estimator=estimator).packed)
    of_pairs = [n for operation, _, dtype, n, _ in asked if operation == "hsic_pairs"]
    assert len(of_pairs) == 2
    assert all(abs(n - 9) <= 1 for n in of_pairs)
    types = {"gram": HALF, "gram_finish": HALF, "finish": torch.float64}
    others = [given for given in asked if given[0] != "hsic_pairs"]
    assert others == [(given[0], CPU, types[given[0]], 9, None) for given in others]
    assert len(others) == 6


def test_a_backend_that_was_wrong_never_runs_by_itself(gpu, cache):
    write(cache, rows({"native": "wrong: its error is 1", "triton": "failed", "torch": 30.0}))
    assert name_of() == "torch"
    assert reasons()["native"] == "wrong: its error is 1"
    write(cache, rows(dict.fromkeys(dispatch.BACKENDS, "failed")))
    assert name_of() == "torch"  # the reference
    assert reasons()["torch"] == "the reference here, failed at n = 64"


def test_who_names_a_backend_is_heard_before_the_table(gpu, cache, monkeypatch):
    write(cache, rows({"triton": 1.0, "torch": 9.0}))
    monkeypatch.setenv("FASTCKA_BACKEND", "native")
    assert name_of() == "native"
    with dispatch.using("torch"):
        assert name_of() == "torch"
        assert dispatch.name_of("gram_finish", GPU, HALF, 64, "triton") == "triton"
    assert reasons()["torch"] == "native comes first"


def test_the_users_table_comes_before_that_of_the_package(gpu, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SHIPPED", tmp_path / "shipped")
    # Whoever ships a table answers for other versions.
    write(tmp_path / "shipped", rows({"native": 1.0, "torch": 9.0}), torch="1.0")
    assert name_of() == "native"
    write(cache, rows({"triton": 1.0, "torch": 9.0}))
    assert name_of() == "triton"


@pytest.mark.parametrize("package", speed.PACKAGES)
def test_a_table_of_another_version_is_ignored_and_info_says_so(gpu, cache, package, capsys):
    path = write(cache, rows({"triton": 1.0}), **{package: "0.0.1"})
    assert name_of() == "torch"
    (remark,) = speed.known(GPU).remarks
    assert remark.startswith(f"{path} is ignored: it was measured by {package} 0.0.1, here is ")
    write(cache, rows({"torch": 1.0}, operation="gram"), "Some CPU", **{package: "0.0.1"})
    assert main(["info"]) == 0
    told = capsys.readouterr().out
    assert "nothing was measured on this CPU yet; `fastcka info --measure` does so" in told
    assert f"is ignored: it was measured by {package} 0.0.1" in told


def test_a_table_under_another_name_is_ignored(gpu, cache):
    path = write(cache, rows({"triton": 1.0}), "Other GPU")
    path.rename(path.with_name(speed.file_name("Some GPU")))
    assert name_of() == "torch"
    assert speed.known(GPU).remarks[0].endswith("is ignored: it was measured on Other GPU")


def test_a_version_that_forgets_a_part_or_is_off_in_it_is_wrong():
    case = benchmark._finish(torch.Generator().manual_seed(0), torch.float64, 8)

    def forgets(place):
        def version(k, stats, *outputs_and_estimator):
            torch_finish.finish(k, stats, *outputs_and_estimator)
            outputs_and_estimator[3][place] = torch.nan

        return version

    def off(place):
        def version(k, stats, *outputs_and_estimator):
            torch_finish.finish(k, stats, *outputs_and_estimator)
            outputs_and_estimator[3][place] *= 1.001

        return version

    assert benchmark._check(torch_finish.finish, case)[1] is None
    for version in (*map(forgets, range(5)), *map(off, range(3))):
        assert benchmark._check(version, case)[1].startswith("wrong: its error is")


DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "\0" + text,
    "a list": lambda text: "[]",
    "no rows": lambda text: text.replace('"rows"', '"columns"'),
    "newer": lambda text: text.replace('"schema": 1', '"schema": 2'),
    "a column": lambda text: text.replace('"median_us"', '"median_ms"'),
    "no time": lambda text: text.replace("9.0", "-9.0"),
    "no number": lambda text: text.replace("9.0", '"9"'),
    "a backend": lambda text: text.replace('"triton", "median', '"fast", "median'),
    "a type": lambda text: text.replace('"float16"', '"float17"'),
    "no versions": lambda text: text.replace('"versions": {', '"versions": 1, "others": {'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_table_is_one_warning_and_is_ignored(gpu, cache, damage):
    path = write(cache, rows({"triton": 1.0, "torch": 9.0}))
    path.write_text(damage(path.read_text()))
    speed.forget()
    reason = "(is damaged, or no table of speeds|has the schema 2, and this fastcka reads 1)"
    with pytest.warns(RuntimeWarning, match=f"{reason}; it is ignored") as told:
        assert [name_of(), name_of(FLOAT)] == ["torch", "torch"]
    assert len(told) == 1
    assert str(path) in str(told[0].message)


def test_a_table_is_read_once(gpu, cache, monkeypatch):
    write(cache, rows({"triton": 1.0}))
    assert name_of() == "triton"
    monkeypatch.setattr(speed, "read", None)
    assert name_of() == name_of(n=65) == "triton"


def test_layers_wait_where_the_table_has_something_faster_than_torch(gpu, cache, monkeypatch):
    monkeypatch.setattr(gram_queue, "on_gpu", lambda x: True)
    faster, slower = {"native": 1.0, "torch": 9.0}, {"native": 9.0, "torch": 1.0}
    write(cache, [*rows(faster), *rows(slower, dtype="float32")], "Some CPU")
    assert gram_queue.waits(torch.ones(64, 3, dtype=HALF), None)
    assert not gram_queue.waits(torch.ones(64, 3, dtype=FLOAT), None)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_result_names_what_has_reduced_its_layers(gpu, cache, kernel):
    operation = "gram_finish" if kernel == "linear" else "gram"
    slow = rows({"native": 9.0, "torch": 1.0}, operation, "float32", 8)
    write(cache, slow, "Some CPU")
    for dtype, expected in ((torch.float32, "torch"), (torch.float64, "native")):
        cka = MinibatchCKA(["x"], gram=kernel).update([torch.randn(8, 5, dtype=dtype)])
        assert cka.compute().meta["backend"] == expected


@pytest.mark.parametrize(("wait", "batches"), [(True, 3), (False, 1)])
def test_a_comparison_names_what_has_reduced_its_layers(gpu, cache, monkeypatch, wait, batches):
    monkeypatch.setattr(gram_queue, "on_gpu", lambda x: wait)
    reduced = rows({"native": 1.0, "torch": 9.0}, dtype="float32", n=8)
    paired = rows({"native": 9.0, "torch": 1.0}, "hsic_pairs", "float64", 8)
    write(cache, [*reduced, *paired], "Some CPU")
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    data = torch.randn(8 * batches, 5).split(8)
    result = compare(net, data=data, layers_a="leaves", progress=False)
    assert result.meta["backend"] == "native"


def test_measuring_times_what_is_right_by_turns_and_dispatch_goes_by_it(cache):
    torch.use_deterministic_algorithms(False)
    before = torch.get_rng_state()
    assert speed.known(CPU).table is None
    path = measure_speed("cpu", counts=[16, 8, 16])
    assert torch.equal(torch.get_rng_state(), before)
    assert path.parent == cache
    table = speed.read(path)
    assert speed.known(CPU).table == table
    assert (table.threads, table.versions) == (torch.get_num_threads(), speed.versions())
    types = {"gram": 3, "gram_finish": 3, "finish": 1, "hsic_pairs": 1}
    for operation, count in types.items():
        found = [row for row in table.rows if row.operation == operation]
        assert {row.n for row in found} == {8, 16}
        assert {row.backend for row in found} == {"native", "torch"}
        assert len(found) == count * 2 * 2
        for row in found:
            assert row.why is None
            assert row.median_us > 0
            allowed = torch.float64 if row.dtype == "float64" else torch.float32
            assert 0 <= row.error <= benchmark.ALLOWED[allowed]
    fastest = table.nearest("gram", "float32", 9)[0].backend
    assert dispatch.name_of("gram", CPU, FLOAT, 9) == fastest
    assert path.read_bytes() == speed.as_json(table)


def off_by_a_little(x, operand, k, stats):
    native.gram(x, operand, k, stats)
    k[3, 2] *= 1.001


def does_nothing(x, operand, k, stats):
    pass


def breaks(x, operand, k, stats):
    raise RuntimeError("out of registers\nand more")


WRONG = {
    ("native", off_by_a_little): r"wrong: its error is \S+, allowed is 1e-05",
    # The second to be checked: what the first has written is gone.
    ("torch", does_nothing): "wrong: its error is nan, allowed is 1e-05",
    ("native", breaks): "failed: RuntimeError: out of registers$",
}


@pytest.mark.parametrize(("backend", "version"), WRONG)
def test_a_backend_that_is_wrong_is_not_timed_and_never_picked(
    cache, monkeypatch, backend, version
):
    with monkeypatch.context() as patch:
        patch.setitem(dispatch.OPERATIONS["gram"], backend, version)
        table = speed.read(measure_speed("cpu", counts=[8]))
    wrong = [row for row in table.rows if row.why]
    assert [(row.operation, row.backend) for row in wrong] == [("gram", backend)] * 3
    for row in wrong:
        assert row.median_us is row.error is None
        assert re.match(WRONG[backend, version], row.why)
    (other,) = {"native", "torch"} - {backend}
    assert dispatch.name_of("gram", CPU, FLOAT, 8) == other


def test_too_little_memory_says_nothing_of_a_backend(cache, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(dispatch.OPERATIONS["gram"], "native", full)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        measure_speed("cpu", counts=[8])
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "options", "error", "text"),
    [
        ("cpu", {"counts": []}, ValueError, "`counts` is empty"),
        ("cpu", {"counts": [3]}, ValueError, "`counts` must be a whole number from 4 on, but is 3"),
        ("mps", {}, RuntimeError, "cannot measure mps: only torch runs there"),
        ("cuda:99", {}, RuntimeError, r"cannot measure cuda:99: torch sees \w+ GPUs here"),
    ],
)
def test_what_cannot_be_measured_is_an_error(cache, device, options, error, text):
    with pytest.raises(error, match=text):
        measure_speed(device, **options)
    assert not cache.exists()


def test_a_table_that_cannot_be_written_is_an_error_before_anything_is_measured(
    cache, monkeypatch, capsys
):
    cache.parent.write_text("a file where the cache should be")
    monkeypatch.setattr(benchmark, "_measured", None)
    with pytest.raises(OSError, match=r"cannot write .*json: .*; FASTCKA_CACHE names") as told:
        measure_speed("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["info", "--measure"]) == 1
    assert capsys.readouterr().err == f"fastcka: {told.value}\n"


def test_info_measures_this_machine_and_explains_what_runs(cache, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark.measure_speed, "__kwdefaults__",
                        measure_speed.__kwdefaults__ | {"counts": (8,)})  # fmt: skip
    assert main(["info", "--measure"]) == 0
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["device"] == speed.measured_as(CPU)
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("speed of cpu") and line.endswith(str(path)) for line in told)
    (line,) = (line for line in told if line.startswith("gram        cpu     bfloat16"))
    assert " runs: the fastest here, " in line
    assert " not used: " in line
    assert line.count(" µs") == 2
    assert " µs a call at n = 8" in line
    assert told.count("gram        cpu     triton    not used: Triton compiles for GPUs") == 1


def test_tables_of_the_package_can_be_read_and_bear_the_names_of_their_devices():
    assert (SHIPPED / "README.md").is_file()  # else the folder would not be there
    for path in SHIPPED.glob("*.json"):
        assert path.name == speed.file_name(speed.read(path).device)


@pytest.mark.gpu
def test_measuring_a_gpu_gives_a_table_without_wrong_backends(cache):
    torch.use_deterministic_algorithms(False)
    table = speed.read(measure_speed("cuda", counts=[64, 256]))
    assert [row for row in table.rows if row.why] == []
    assert {"torch"} < {row.backend for row in table.rows}
    x = torch.randn(64, 100, device="cuda")
    assert gram(x).k.shape == (64, 64)
