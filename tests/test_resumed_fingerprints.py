"""A fingerprint that was stopped goes on to the same file; nothing half stands at its place."""

import errno
import os
import subprocess
import sys

import pytest
from networks import images, net
from test_checkpoint import Counting, Stop, StopsAfter
from test_fingerprints import Data

import fastcka
from fastcka import Fingerprint
from fastcka.cli import main
from fastcka.data import write_images
from fastcka.fingerprints import PARTS, FingerprintWriter


class Stopping(Data):
    """The same batches, of which `left` come."""

    def __init__(self, left, **options):
        super().__init__(**options)
        self.left = left

    def __iter__(self):
        return iter(StopsAfter(super().__iter__(), self.left))


def fingerprint(folder, data, model=None, resume=True, **options):
    usual = {"layers": "leaves", "ids": data.ids, "progress": False, "resume": resume}
    usual["checkpoint"] = folder / "state" if resume else None
    return fastcka.fingerprint(model or net(), data, folder / "a.fp", **usual | options)


def stopped(folder, count, **options):
    with pytest.raises(Stop):
        fingerprint(folder, Stopping(count), **options)
    assert sorted(os.listdir(folder)) == ["state", "state.data"]


def assert_same_file(found, expected):
    """To the byte, but for the date and whether it was resumed."""
    same = ("layers", "batches", "eps", "model", "warnings", "estimator", "gram", "operand")
    for name in same:
        assert found._plain[name] == expected._plain[name], name
    for number in range(expected.n_batches):
        for part in PARTS:
            one, other = (file._tensor(number, part) for file in (found, expected))
            assert one.numpy().tobytes() == other.numpy().tobytes()
    fastcka.compare(found)  # tests the checksums


@pytest.fixture
def expected(tmp_path):
    (tmp_path / "whole").mkdir()
    return fingerprint(tmp_path / "whole", Data(), resume=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize("options", [{}, {"n": 5}, {"dtype": "fp16"}], ids=["", "parts", "fp16"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stopped_fingerprint_goes_on_to_the_same_file(tmp_path, folder, count, options):
    (tmp_path / "whole").mkdir()
    expected = fingerprint(tmp_path / "whole", Data(), resume=False, **options)
    stopped(folder, count, **options)
    found = fingerprint(folder, Data(), **options)
    assert_same_file(found, expected)
    assert found.meta["resumed"] == count * (4 if "n" in options else 1)
    assert sorted(os.listdir(folder)) == ["a.fp", "state"]


def test_what_is_behind_is_not_run_again_and_a_finished_one_is_there_at_once(folder):
    with pytest.raises(Stop):
        fingerprint(folder, Stopping(3), model=(first := Counting(net())), layers="**")
    again, after = Counting(net()), Counting(net())
    found = fingerprint(folder, Data(), model=again, layers="**")
    assert (first.calls, again.calls) == (3, 1)
    before = found.path.read_bytes()
    fingerprint(folder, Data(), model=after, layers="**")
    assert after.calls == 0
    assert found.path.read_bytes() == before
    assert sorted(os.listdir(folder)) == ["a.fp", "state"]


def test_one_can_be_stopped_more_than_once_also_before_it_was_put_in_its_place(
    folder, expected, monkeypatch
):
    def killed(*_):
        raise Stop

    for count in (1, 2):
        stopped(folder, count)
    monkeypatch.setattr(FingerprintWriter, "finish", killed)
    stopped(folder, 9)
    monkeypatch.undo()
    assert_same_file(fingerprint(folder, Data()), expected)


def test_what_was_written_but_not_added_up_is_written_again(folder, expected, monkeypatch):
    stopped(folder, 1)
    before = (folder / "state").read_bytes()

    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(fastcka.MinibatchCKA, "add", fails)
    with pytest.raises(MemoryError):
        fingerprint(folder, Data())
    assert (folder / "state").read_bytes() == before
    monkeypatch.undo()
    assert_same_file(fingerprint(folder, Data()), expected)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_full_disk_is_told_and_what_was_written_before_stays(
    tmp_path, folder, monkeypatch, parts
):
    options = {"n": 10} if parts == 2 else {}
    (tmp_path / "whole").mkdir()
    expected = fingerprint(tmp_path / "whole", Data(), resume=False, **options)
    values, calls = FingerprintWriter._values, []

    def full(self, *given):
        calls.append(given)
        if len(calls) == 3 * parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return values(self, *given)

    monkeypatch.setattr(FingerprintWriter, "_values", full)
    with pytest.raises(OSError, match=r"cannot write .*a.fp: No space left on device$"):
        fingerprint(folder, Data(), **options)
    monkeypatch.undo()
    model = Counting(net())
    with pytest.raises(ValueError, match=r"`models.a.class` is .* there"):
        fingerprint(folder, Data(), model=model, **options)
    found = fingerprint(folder, Data(), **options)
    assert found.meta["resumed"] == 2 * parts
    assert_same_file(found, expected)


def test_images_that_come_a_second_time_are_known_also_after_resuming(folder):
    stopped(folder, 2)
    data = Data()
    data.order = (*data.order[:2], data.order[0], *data.order[3:])
    names = data.ids
    data.ids = lambda batch: names(batch)
    with pytest.raises(ValueError, match="two batches have the same `ids`"):
        fingerprint(folder, data)


def test_what_differs_is_refused_and_nothing_is_lost(folder, expected):
    stopped(folder, 2)
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with pytest.raises(FileExistsError, match="state of an unfinished comparison"):
        fingerprint(folder, Data(), resume=False, checkpoint=folder / "state")
    for options, text in (
        ({"dtype": "fp16"}, "`kept.dtype` is 'fp16' now, and was 'fp32' there"),
        ({"model": net(seed=1)}, "`weights.a` is .* there"),
        ({"estimator": "biased"}, "`estimator` is 'biased' now, and was 'unbiased' there"),
    ):
        with pytest.raises(ValueError, match=text):
            fingerprint(folder, Data(), **options)
    other = Data()
    other.x = images(70, seed=5)
    with pytest.raises(ValueError, match="`data` gives other batches than before"):
        fingerprint(folder, other)
    with pytest.raises(ValueError, match=r"cannot resume from .*: `kept` is None now"):
        fastcka.compare(
            net(), data=Data(), layers_a="leaves", checkpoint=folder / "state", resume=True
        )
    with pytest.raises(ValueError, match="`resume` needs `checkpoint`"):
        fingerprint(folder, Data(), checkpoint=None)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert_same_file(fingerprint(folder, Data()), expected)


@pytest.mark.parametrize("lost", ["gone", "cut", "an older file"])
def test_a_state_without_what_it_belongs_to_is_refused(folder, lost):
    if lost == "an older file":
        fingerprint(folder, Data(count=80), resume=False)
    with pytest.raises(Stop):
        fingerprint(folder, Stopping(2))
    data = folder / "state.data"
    data.write_bytes(data.read_bytes()[:-1]) if lost == "cut" else data.unlink()
    with pytest.raises(
        ValueError, match=r"cannot resume: .*state.data does not hold what was meas"
    ):
        fingerprint(folder, Data())


def test_an_older_file_stays_until_the_new_one_is_there(folder):
    older = fingerprint(folder, Data(count=80), resume=False).path.read_bytes()
    with pytest.raises(Stop):
        fingerprint(folder, Stopping(2))
    assert (folder / "a.fp").read_bytes() == older
    assert fingerprint(folder, Data()).n_examples == 70


# Forked from one process that has loaded everything and used no threads yet.
KILLS = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import fastcka
sys.path.insert(0, sys.argv[1])
from networks import images, net

folder, moments = sys.argv[2], 20
data = list(images(48 * 60, size=16).split(60))
names = {float(batch.sum()): range(60 * i, 60 * i + 60) for i, batch in enumerate(data)}

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return pid

def run(state, out):
    fastcka.fingerprint(
        net(size=16), iter(data), out, layers="leaves", checkpoint=state, resume=True,
        save_every=0.02, progress=False, ids=lambda batch: names[float(batch.sum())],
    )

def finish(work):
    _, status = os.waitpid(child(work), 0)
    assert status == 0, status

start = time.monotonic()
finish(lambda: run(f"{folder}/whole", f"{folder}/expected.fp"))
took = time.monotonic() - start
expected = fastcka.Fingerprint(f"{folder}/expected.fp")
random.seed(0)
resumed = 0
for i in range(moments):
    state, out = f"{folder}/state{i}", f"{folder}/out{i}.fp"
    pid = child(lambda: run(state, out))
    time.sleep(random.random() * took)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    there = os.path.exists(state)
    resumed += there
    finish(lambda: run(state, out))
    found = fastcka.Fingerprint(out)
    assert found._plain["batches"] == expected._plain["batches"]
    assert found._plain["eps"] == expected._plain["eps"]
    for number in range(found.n_batches):
        found.stack(number)  # tests the checksum
    assert not os.path.exists(state + ".data")
print("equal", moments, "resumed", resumed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fingerprint_killed_at_random_moments_goes_on_to_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLS, os.path.dirname(__file__), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    assert words[:2] == ["equal", "20"]
    assert int(words[-1]) >= 10  # most were killed behind the first save


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    images = str(write_images(tmp_path / "images", 40, size=40))
    path = tmp_path / "vit.fp"
    usual = ["fingerprint", "test_vit", "--data", images, "--output", str(path)]
    usual += ["--img-size", "32", "--batch-size", "16", "--quiet"]

    def command(*more, expect=0):
        monkeypatch.setattr(sys, "argv", ["fastcka", *usual, *more])
        assert main([*usual, *more]) == expect
        return capsys.readouterr().err

    add, calls = FingerprintWriter.add, []

    def fails(self, parts):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, parts)

    monkeypatch.setattr(FingerprintWriter, "add", fails)
    assert "--resume goes on from here" in command(expect=1)
    there = ["images", "vit.fp.state", "vit.fp.state.data"]
    assert sorted(os.listdir(tmp_path)) == there
    told = command(expect=1)
    assert f"{path} is unfinished: add --resume to go on with it, --overwrite to begin anew" in told
    assert sorted(os.listdir(tmp_path)) == there
    command("--resume")
    assert len(calls) == 4  # the third batch, again
    assert sorted(os.listdir(tmp_path)) == ["images", "vit.fp"]
    resumed = Fingerprint(path)
    assert resumed.meta["resumed"] == 2
    assert f"there is nothing to resume: {path} is finished" in command("--resume")
    assert len(calls) == 4
    assert "is there already: give another --output" in command("--resume", "--seed", "1", expect=1)
    calls.clear()
    command("--overwrite", expect=1)
    assert Fingerprint(path).meta["resumed"] == 2  # the older one
    command("--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["images", "vit.fp"]
    assert_same_file(Fingerprint(path), resumed)
    assert "resumed" not in Fingerprint(path).meta
    path.unlink()
    assert f"there is nothing to resume at {path}: begins at the start" in command("--resume")


def test_two_runs_do_not_write_one_fingerprint(tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / ".vit.fp.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["fingerprint", "test_vit", "--output", str(tmp_path / "vit.fp")]) == 1
    assert "another run is writing to" in capsys.readouterr().err
