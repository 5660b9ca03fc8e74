"""A comparison that was stopped goes on, to the same bits; what is not the same is refused."""

import errno
import os
import subprocess
import sys
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from networks import images, net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import CKAWarning
from fastcka.checkpoint import Checkpoint
from fastcka.data import ImageBatches, write_images
from fastcka.distributed import Share
from fastcka.measurement import _Sums
from fastcka.trail import Trail

ARRAYS = ("cka", "stderr", "hsic_ab", "hsic_aa", "hsic_bb")


class Stop(Exception):
    pass


class StopsAfter:
    """Batches until there were `count`, in all passes together."""

    def __init__(self, batches, count):
        self.batches, self.left = batches, count

    def __iter__(self):
        for batch in self.batches:
            if self.left == 0:
                raise Stop
            self.left -= 1
            yield batch


class Counting(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x):
        self.calls += 1
        return self.network(x)


def compare(path, data, model=None, **options):
    options = {"layers_a": "leaves", "progress": False, "resume": True} | options
    return fastcka.compare(model or net(), data=data, checkpoint=path, **options)


def stopped(path, data, count, **options):
    with pytest.raises(Stop):
        compare(path, StopsAfter(data, count), **options)


def assert_same_bits(found, expected):
    for name in ARRAYS:
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name
    assert found.n_examples == expected.n_examples
    assert found.n_batches == expected.n_batches
    assert found.warnings == expected.warnings
    assert found.meta["n_blocks"] == expected.meta["n_blocks"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


CASES = {
    "one pass": {},
    "two passes": {"passes": 2},
    "parts": {"n": 5},
    "equal, biased, rbf": {"weighting": "equal", "estimator": "biased", "gram": "rbf"},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.filterwarnings("ignore:.* left out")
def test_a_stopped_comparison_goes_on_to_the_same_bits(path, name, count):
    options = CASES[name]
    data = list(images(62).split(10))  # the last one is of 2, too small
    expected = fastcka.compare(net(), data=data, layers_a="leaves", **options)
    stopped(path, data, count, **options)
    found = compare(path, data, **options)
    assert_same_bits(found, expected)
    assert found.meta["resumed"] == count * (2 if "n" in options else 1)


def test_what_is_behind_is_not_run_again(path):
    data = list(images(40).split(10))
    model = Counting(net())
    stopped(path, data, 3, model=model)
    assert model.calls == 3
    again = Counting(net())
    compare(path, data, model=again)
    assert again.calls == 1
    finished = Counting(net())
    found = compare(path, data, model=finished)
    assert finished.calls == 0
    assert_same_bits(found, fastcka.compare(net(), data=data, layers_a="leaves"))


def test_a_comparison_can_be_stopped_more_than_once(path):
    data = list(images(60).split(10))
    for count in (2, 4, 5):
        stopped(path, data, count)
    found = compare(path, data)
    assert_same_bits(found, fastcka.compare(net(), data=data, layers_a="leaves"))
    assert found.meta["resumed"] == 5


def test_several_models_go_on_too(path):
    data = list(images(40).split(10))
    models = {"thin": net(), "wide": net(width=9), "other": net(seed=1)}
    options = {"layers": "leaves", "checkpoint": path, "resume": True}
    with pytest.raises(Stop):
        fastcka.compare_many(models, StopsAfter(data, 2), **options)
    found = fastcka.compare_many(models, data, **options)
    expected = fastcka.compare_many(models, data, layers="leaves")
    for pair in expected:
        assert_same_bits(found[pair], expected[pair])


# Image folders


class Broken:
    """Fails on the count-th image, as a full memory would."""

    def __init__(self, count=None):
        self.left, self.seen = count, 0

    def __call__(self, image):
        self.seen += 1
        if self.left is not None and self.seen > self.left:
            raise Stop
        return to_tensor(image)

    def __repr__(self):
        return "to_tensor"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 44, size=16)


def folder_batches(folder, transform, **options):
    return ImageBatches(folder, {"x": transform}, batch_size=10, **options)


VIEW = {"input_a": lambda batch: batch["views"]["x"], "model": net(size=16)}


@pytest.mark.parametrize("passes", [1, 2])
def test_an_image_folder_is_read_from_where_it_was_left(folder, path, passes):
    expected = compare(None, folder_batches(folder, Broken()), passes=passes, resume=False, **VIEW)
    with pytest.raises(Stop):
        compare(path, folder_batches(folder, Broken(27)), passes=passes, **VIEW)
    rest = Broken()
    found = compare(path, folder_batches(folder, rest), passes=passes, **VIEW)
    assert rest.seen == 44 * passes - 20
    assert_same_bits(found, expected)
    assert found.meta["data"]["files_used"] == 44


def test_images_that_were_skipped_before_are_still_told(folder, path, tmp_path):
    def batches(transform):
        return folder_batches(tmp_path / "copy", transform, on_broken="skip")

    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    order = [name for batch in folder_batches(folder, to_tensor) for name in batch["index"]]
    first = sorted((tmp_path / "copy").rglob("*.png"))[order[3]]
    first.write_bytes(b"no image")
    with pytest.warns(CKAWarning, match="1 of 44 images could not be read"):
        expected = compare(None, batches(Broken()), resume=False, **VIEW)
    with pytest.raises(Stop):
        compare(path, batches(Broken(25)), **VIEW)
    with pytest.warns(CKAWarning, match="1 of 44 images could not be read"):
        found = compare(path, batches(Broken()), **VIEW)
    assert_same_bits(found, expected)
    assert found.meta["data"]["broken"] == expected.meta["data"]["broken"] != []


def test_sorted_batches_are_told_over_an_interruption(path):
    x, labels = images(80), torch.arange(80) // 10
    data = list(DataLoader(TensorDataset(x, labels), 10))
    with pytest.warns(CKAWarning, match="sorted by class") as first:
        compare(None, data, resume=False)
    stopped(path, data, 7)
    with pytest.warns(CKAWarning, match="sorted by class") as second:
        compare(path, data)
    assert str(first[0].message) == str(second[0].message)


# What is refused


def test_a_state_that_is_there_is_not_overwritten_unasked(path):
    data = list(images(40).split(10))
    stopped(path, data, 2)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="state of an unfinished comparison: resume it, or"):
        compare(path, data, resume=False)
    assert path.read_bytes() == before


def test_other_batches_are_refused(path):
    data = list(images(60).split(10))
    stopped(path, data, 4)
    before = path.read_bytes()
    other = [*data]
    other[2] = other[2].clone()
    other[2][7] += 1e-3
    with pytest.raises(ValueError, match="cannot resume: `data` gives other batches than before"):
        compare(path, other)
    with pytest.raises(ValueError, match="`data` gives other batches"):
        compare(path, [data[1], data[0], *data[2:]])
    with pytest.raises(ValueError, match=r"4 batches of pass 1 were read before, but now .* fewer"):
        compare(path, data[:3])
    unseeded = DataLoader(TensorDataset(images(60)), 10, shuffle=True)
    with pytest.raises(ValueError, match="`data` gives other batches"):
        compare(path, unseeded)
    assert path.read_bytes() == before
    compare(path, data)


CHANGES = {
    "weights.a": {"model": net(seed=1)},
    "models.a.layers": {"layers_a": ["0"]},
    "models.a.class": {"model": Counting(net())},
    "n` is 5": {"n": 5},
    "passes` is 2": {"passes": 2},
    "weighting` is 'equal'": {"weighting": "equal"},
    "estimator` is 'biased'": {"estimator": "biased"},
    "operand` is 'bf16'": {"operand": "bf16"},
    "autocast` is 'bf16'": {"autocast": "bf16"},
    "backend` is 'torch'": {"backend": "torch"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_comparison_is_refused_by_what_differs(path, name):
    data = list(images(40).split(10))
    stopped(path, data, 2)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"cannot resume from .*state: `{name}.* there") as told:
        compare(path, data, **CHANGES[name])
    assert "\n" not in str(told.value)
    assert path.read_bytes() == before


def test_other_images_are_refused(folder, path, tmp_path):
    with pytest.raises(Stop):
        compare(path, folder_batches(folder, Broken(25)), **VIEW)
    with pytest.raises(ValueError, match=r"`data.seed` is 1 now, and was 0 there"):
        compare(path, folder_batches(folder, Broken(), seed=1), **VIEW)
    with pytest.raises(ValueError, match=r"`data.files_used` is 20 now, and was 44 there"):
        compare(path, folder_batches(folder, Broken(), max_images=20), **VIEW)
    with pytest.raises(ValueError, match=r"`data.views.x` is .* there"):
        compare(path, folder_batches(folder, to_tensor), **VIEW)
    other = write_images(tmp_path / "other", 44, size=16, seed=1)
    with pytest.raises(ValueError, match=r"`data.sha256` is .* now, and was .* there"):
        compare(path, folder_batches(other, Broken()), **VIEW)


def test_a_damaged_state_is_refused(path):
    data = list(images(40).split(10))
    stopped(path, data, 2)
    whole = path.read_bytes()
    for content in (b"", whole[:-8], whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b"{}" * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="state is damaged, or no file of fastcka's"):
            compare(path, data)
        assert path.read_bytes() == content


def test_a_state_of_another_format_is_refused(path, monkeypatch):
    data = list(images(40).split(10))
    monkeypatch.setattr("fastcka.measurement.SCHEMA", 0)
    stopped(path, data, 2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="`schema` is 4 now, and was 0 there"):
        compare(path, data)
    monkeypatch.setattr("fastcka.array_file.SCHEMA", 2)
    other = path.with_name("newer")
    stopped(other, data, 2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="was written by a newer fastcka, in format 2"):
        compare(other, data)


def test_a_result_is_no_state_and_a_state_no_result(path, tmp_path):
    data = list(images(40).split(10))
    stopped(path, data, 2)
    with pytest.raises(
        ValueError, match="state of an unfinished comparison, not CKAResult: resume"
    ):
        fastcka.CKAResult.load(path)
    result = compare(tmp_path / "other", data).save(tmp_path / "result")
    with pytest.raises(ValueError, match="holds CKAResult, not the state of an unfinished compari"):
        compare(result, data)


def test_a_path_that_cannot_be_is_refused_before_anything_runs(tmp_path):
    model = Counting(net())
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        compare(tmp_path / "no" / "state", [images(8)], model=model)
    with pytest.raises(ValueError, match=r"`save_every` must be a number of seconds .*, but is -1"):
        compare(tmp_path / "state", [images(8)], model=model, save_every=-1)
    with pytest.raises(ValueError, match="`resume` needs `checkpoint`"):
        compare(None, [images(8)], model=model)
    assert model.calls == 0


# What goes wrong on the way


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_once_and_the_older_state_stays(path, monkeypatch):
    data = list(images(60).split(10))
    stopped(path, data, 2)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.warns(CKAWarning, match="cannot save the state to .*: No space left") as told:
        found = compare(path, data, save_every=0)
    assert sum("cannot save" in str(one.message) for one in told) == 1
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    assert_same_bits(found, fastcka.compare(net(), data=data, layers_a="leaves"))


def test_what_a_killed_process_left_half_written_is_cleared_away(path):
    data = list(images(40).split(10))
    stopped(path, data, 2)
    (path.parent / f".{path.name}.4711").write_bytes(b"half")
    compare(path, data)
    assert os.listdir(path.parent) == [path.name]


def test_an_error_in_the_middle_of_adding_up_is_not_saved(path, monkeypatch):
    data = list(images(60).split(20))
    stopped(path, data, 1, n=5)
    before = path.read_bytes()
    add, calls = fastcka.MinibatchCKA.add, []

    def fails(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return add(self, *args, **options)

    monkeypatch.setattr(fastcka.MinibatchCKA, "add", fails)
    with pytest.raises(MemoryError):
        compare(path, data, n=5)
    assert path.read_bytes() == before
    monkeypatch.undo()
    expected = fastcka.compare(net(), data=data, layers_a="leaves", n=5)
    assert_same_bits(compare(path, data, n=5), expected)


def dies():
    time.sleep(1)  # until what was made before has arrived
    os._exit(3)


class Fails:
    """In a worker, at the image of a certain colour."""

    def __init__(self, how=None):
        self.how = how

    def __call__(self, image):
        x = to_tensor(image)
        if self.how and torch.utils.data.get_worker_info() and self.how[0] == float(x.sum()):
            self.how[1]()
        return x

    def __repr__(self):
        return "to_tensor"


@pytest.mark.parametrize(
    ("end", "text"),
    [(dies, "exited unexpectedly"), (partial(time.sleep, 60), "timed out")],
    ids=["dies", "hangs"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_fails_ends_the_run_and_it_can_go_on(folder, path, monkeypatch, end, text):
    monkeypatch.setattr("fastcka.data.images.PATIENCE", 5.0)
    batches = [batch["views"]["x"] for batch in folder_batches(folder, Fails())]
    expected = compare(None, folder_batches(folder, Fails()), resume=False, **VIEW)
    how = (float(batches[3][4].sum()), end)
    with pytest.raises(RuntimeError, match=text) as caught:
        compare(path, folder_batches(folder, Fails(how), workers=1), **VIEW)
    assert caught.value.partial.n_batches == 3
    found = compare(path, folder_batches(folder, Fails(), workers=1), **VIEW)
    assert_same_bits(found, expected)
    assert found.meta["resumed"] == 3


def test_what_cannot_be_saved_does_not_hide_the_first_error(path, monkeypatch):
    def fails(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(Checkpoint, "save", fails)
    with pytest.raises(Stop) as caught:
        compare(path, StopsAfter(images(40).split(10), 2))
    assert caught.value.partial.n_batches == 2
    assert caught.value.__notes__ == ["the state could not be saved: no room"]


def test_what_all_processes_have_is_not_saved_as_ones_own(path, monkeypatch):
    data = list(images(60).split(10))

    class Two(Share):
        """Alone, though it believes that there are two; the other one has nothing."""

        def everyone(self, value):
            return [value, value]

    def stopped_behind(self, states):
        load(self, states)
        raise KeyboardInterrupt

    load = _Sums.load
    monkeypatch.setattr("fastcka.comparison.Share", Two)
    monkeypatch.setattr("fastcka.comparison.shared", lambda: Two(0, 2))
    monkeypatch.setattr(_Sums, "load", stopped_behind)
    with pytest.raises(KeyboardInterrupt):
        compare(path, data, distributed=True)
    (state,) = path.parent.glob("state-0-of-2")
    plain, _ = Checkpoint(state, resume=True).load()
    assert plain["sums"]["counts"]["n_batches"] == 3


def test_a_layer_that_turns_nan_is_named_also_after_resuming(path):
    data = [batch.clone() for batch in images(60).split(10)]
    data[1][3] = float("nan")
    with pytest.warns(CKAWarning, match="first in batch 1; "):
        expected = compare(None, data, resume=False)
    stopped(path, data, 4)
    with pytest.warns(CKAWarning, match="first in batch 1; "):
        assert_same_bits(compare(path, data), expected)


def test_the_time_between_saves_does_not_follow_the_clock_on_the_wall(path, monkeypatch):
    checkpoint = Checkpoint(path, every=1000)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not checkpoint.due()
    assert Checkpoint(path, every=0).due()


def test_another_number_of_threads_is_told(path):
    data, threads = list(images(40).split(10)), torch.get_num_threads()
    stopped(path, data, 2)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(CKAWarning, match=f"resumed with {threads + 1} threads after 2 batches"):
            compare(path, data)
    finally:
        torch.set_num_threads(threads)


def test_saving_takes_nothing_from_who_does_not_ask(monkeypatch):
    monkeypatch.setattr(Trail, "see", full_disk)
    monkeypatch.setattr("fastcka.participant.value_bytes", full_disk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastcka.compare(net(), data=[images(8)], layers_a="leaves")


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

def run(state, out=None, slow=0.0):
    def batches():
        for batch in data:
            time.sleep(slow)
            yield batch
    result = fastcka.compare(
        net(size=16), data=batches(), layers_a="leaves", checkpoint=state, resume=True,
        save_every=0.02, progress=False,
    )
    result.save(out) if out else None

def finish(work):
    _, status = os.waitpid(child(work), 0)
    assert status == 0, status

start = time.monotonic()
finish(lambda: run(f"{folder}/whole", f"{folder}/expected"))
took = time.monotonic() - start
expected = fastcka.CKAResult.load(f"{folder}/expected")
random.seed(0)
resumed = 0
for i in range(moments):
    state, out = f"{folder}/state{i}", f"{folder}/out{i}"
    pid = child(lambda: run(state))
    time.sleep(random.random() * took)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    there = os.path.exists(state)
    resumed += there
    finish(lambda: run(state, out))
    found = fastcka.CKAResult.load(out)
    assert ("resumed" in found.meta) == there
    for name in ("cka", "stderr", "hsic_ab", "hsic_aa", "hsic_bb"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), (i, name)
    assert found.n_batches == expected.n_batches
print("equal", moments, "resumed", resumed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(tmp_path):
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


def test_a_trail_sees_every_example_order_and_type():
    x = torch.randn(6, 3, 40)
    cut = np.random.default_rng(0)

    def digest(*batches):
        trail = Trail()
        for batch in batches:
            trail.see(batch)
        return trail.digest

    same = digest(x, {"a": x})
    assert digest(x.clone(), {"a": x.clone()}) == same
    one = x.clone()
    one[cut.integers(6)] += 1e-3
    others = [
        (one, {"a": x}),
        (x, {"a": one}),
        (x.flip(0), {"a": x}),
        (x.double(), {"a": x}),
        (x.view(6, 120), {"a": x}),
        (x,),
    ]
    assert len({digest(*other) for other in others} | {same}) == len(others) + 1
    assert digest(torch.tensor(3), torch.zeros(2).bool(), x.bfloat16()) != digest()
    assert digest((x, torch.zeros(0, 4))) != digest(x)
    with pytest.raises(TypeError, match="a batch holds no tensors, but list: whether it is"):
        digest(["a.jpg", "b.jpg"])
