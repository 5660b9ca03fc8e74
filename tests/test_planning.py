"""What a plan says is what the run takes: sizes by the files, time and memory by the clock."""

import json
import os
import subprocess
import sys

import pytest
import torch
from networks import images, net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import compare, compare_many, plan, planning, rehearsal
from fastcka.cli import main
from fastcka.data import ImageBatches, write_images

# Numbers in the header of a file have more digits at the end of a run than at its beginning.
DIGITS = 64


def deep(width):
    return net(width=width)


def many():
    return {"thin": deep(4), "wide": deep(6), "again": deep(6)}


CASES = {
    "two models": (compare, (deep(4), deep(6)), {}),
    "itself": (compare, (deep(4),), {"layers_a": "leaves"}),
    "parts of batches": (compare, (deep(4), deep(6)), {"n": 5}),
    "biased": (compare, (deep(4),), {"estimator": "biased", "layers_a": "leaves"}),
    "chance and more": (
        compare,
        (deep(4), deep(6)),
        {"calibrate": 20, "also": ["rsa_cosine", "effective_rank"]},
    ),
    "several": (compare_many, (many(),), {"calibrate": 3}),
}


def layered(run, options):
    return {"layers" if run is compare_many else "layers_a": "leaves"} | options


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [69, pytest.param(2609, marks=pytest.mark.slow)])
def test_the_files_have_the_sizes_that_were_planned(tmp_path, name, count):
    run, models, options = CASES[name]
    state = tmp_path / "state"
    options = layered(run, options) | {"progress": False, "checkpoint": state}
    data = images(count).split(10)
    found = plan(run, *models, data=data, **options)
    assert not state.exists()
    result = run(*models, data=data, **options)
    assert found.disk["state"] == pytest.approx(os.path.getsize(state), abs=DIGITS)
    size = os.path.getsize(result.save(tmp_path / "result"))
    assert found.disk["result"] == pytest.approx(size, abs=DIGITS)
    assert result.file_size() == size
    assert (found.images, found.batches) == (count, len(data))


@pytest.mark.filterwarnings("ignore:1 batch of fewer than 4 examples")
def test_what_is_left_out_takes_no_room(tmp_path):
    state, data = tmp_path / "state", images(63).split(10)
    found = plan(compare, deep(4), data=data, checkpoint=state)
    compare(deep(4), data=data, checkpoint=state, progress=False)
    assert found.disk["state"] == pytest.approx(os.path.getsize(state), abs=DIGITS)


@pytest.mark.parametrize(
    "options",
    [{}, {"n": 5}, {"estimator": "biased"}, {"gram": "rbf"}],
    ids=["unbiased", "parts", "biased", "rbf"],
)
def test_fingerprints_have_the_sizes_that_were_planned(tmp_path, options):
    model, data = deep(4), images(69).split(10)
    found = plan(compare, model, data=data, layers_a="leaves", **options)
    number = iter(range(10_000))
    for dtype, size in found.fingerprints["Sequential"].items():
        path = tmp_path / f"{dtype}.fp"
        fastcka.fingerprint(
            model, data, path, layers="leaves", dtype=dtype, progress=False,
            ids=lambda batch: [next(number) for _ in batch], **options,
        )  # fmt: skip
        # Of a Gaussian matrix one of two roundoffs is written with a digit more, in every layer.
        assert size == pytest.approx(os.path.getsize(path), abs=DIGITS)


def test_stored_models_are_planned_too(tmp_path):
    data, names = images(67).split(10), iter(range(67))
    path = tmp_path / "a.fp"
    fastcka.fingerprint(deep(4), data, path, ids=lambda batch: [next(names) for _ in batch])
    found = plan(compare, path, checkpoint=tmp_path / "state")
    assert (found.images, found.batches, found.fingerprints) == (67, 7, {})
    compare(path, checkpoint=tmp_path / "state", progress=False)
    written = os.path.getsize(tmp_path / "state")
    assert found.disk["state"] == pytest.approx(written, abs=DIGITS)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so: no other work on the machine is in them."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(rehearsal, "time", found)
    monkeypatch.setattr(planning, "time", found)
    return found


class Slow(nn.Module):
    """Takes a known time, and more at first."""

    def __init__(self, seconds=0.0, clock=None, first=0.0):
        super().__init__()
        self.seconds, self.clock, self.first, self.layer = seconds, clock, first, nn.Flatten()

    def forward(self, x):
        if self.clock:
            self.clock.now += self.seconds + self.first
            self.first = 0.0
        return self.layer(x)


class SlowData:
    """Takes a known time for each batch."""

    def __init__(self, seconds, clock, count=16):
        self.seconds, self.clock, self.count = seconds, clock, count

    def __len__(self):
        return self.count

    def __iter__(self):
        for _ in range(self.count):
            self.clock.now += self.seconds
            yield torch.randn(8, 4)


class Decoded(SlowData):
    """As of two processes, each of which has up to two batches ready, in turns."""

    num_workers, prefetch_factor = 2, 2

    def __iter__(self):
        free = [self.clock.now] * 2
        asked = [self.clock.now] * 4  # so many at once, then one for each that is taken
        for i in range(self.count):
            free[i % 2] = max(free[i % 2], asked[i]) + self.seconds
            self.clock.now = max(self.clock.now, free[i % 2])
            asked.append(self.clock.now)
            yield torch.randn(8, 4)


@pytest.mark.parametrize(("model", "reading"), [(0.25, 0.0), (0.0, 0.25), (0.25, 0.125)])
def test_the_time_is_that_of_the_run(clock, model, reading):
    net, data = Slow(model, clock), SlowData(reading, clock)
    found = plan(compare, net, data=data, layers_a="layer")
    assert found.seconds["models"] == pytest.approx(16 * model)
    assert found.seconds["reading"] == pytest.approx(16 * reading)
    began = clock.now
    compare(net, data=data, layers_a="layer", progress=False)
    assert sum(found.seconds.values()) == pytest.approx(clock.now - began)
    assert found.dominates["seconds"] == ("models" if model else "reading")
    seen = found.measured
    assert 3 <= seen["batches"] <= 20
    assert [seen[name] for name in ("least", "seconds_a_batch", "most")] == pytest.approx(
        3 * [model + reading]
    )


def test_two_seconds_of_batches_are_timed(clock):
    for seconds, batches in ((1.0, 3), (0.25, 8), (0.125, 15)):
        net, data = Slow(seconds, clock), [torch.randn(8, 4)] * 16
        assert plan(compare, net, data=data, layers_a="layer").measured["batches"] == batches


def test_a_slow_first_batch_counts_once(clock):
    net, data = Slow(0.25, clock, first=1), [torch.randn(8, 4)] * 16
    found = plan(compare, net, data=data, layers_a="layer")
    assert found.seconds["models"] == pytest.approx(4)
    assert found.seconds["start and end"] == pytest.approx(1)


def test_every_pass_takes_its_time(clock):
    data = images(20).split(4)
    found = plan(compare, Slow(0.2, clock), data=data, layers_a="layer", passes=3)
    assert (found.images, found.batches) == (60, 15)
    assert found.seconds["models"] == pytest.approx(3)


@pytest.mark.parametrize("first", [0, 5], ids=["", "some wait decoded"])
@pytest.mark.parametrize("model", [0.0, 0.0625, 0.25], ids=["idle", "waiting", "busy"])
def test_processes_that_decode_are_as_fast_as_they_are_in_the_long_run(clock, model, first):
    data = Decoded(0.25, clock, count=60)
    found = plan(compare, Slow(model, clock, first), data=data, layers_a="layer")
    began = clock.now
    compare(Slow(model, clock), data=data, layers_a="layer", progress=False)
    # Twice as fast as one process, but for the first batch, which nobody has decoded ahead.
    assert clock.now - began == pytest.approx(60 * max(model, 0.125), abs=0.25)
    assert sum(found.seconds.values()) - first == pytest.approx(clock.now - began, abs=0.25)


def test_batches_that_wait_decoded_take_memory():
    loader = DataLoader(TensorDataset(torch.randn(240, 4)), 4, num_workers=2)
    found = plan(compare, Slow(), data=loader, layers_a="layer")
    assert found.worker_memory == 4 * 2 * (16 * 4)  # with its copy


def test_data_of_unknown_length_are_planned_by_the_thousand():
    class Endless:
        def __iter__(self):
            while True:
                yield torch.randn(20, 4)

    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    found = plan(compare, model, data=Endless())
    assert (found.images, found.batches, found.whole) == (1000, 50, False)
    assert "the data do not say how many there are" in str(found)
    assert found.memory["sums"] > 256 * 2 * 2 * 8


def folder_batches(folder, **options):
    return ImageBatches(folder, {"x": to_tensor}, batch_size=10, **options)


def test_the_number_of_images_is_what_the_data_say(tmp_path):
    folder = write_images(tmp_path, 47, size=16)
    view = {"input_a": lambda batch: batch["views"]["x"], "layers_a": "layer"}
    assert plan(compare, Slow(), data=folder_batches(folder), **view).images == 47
    assert plan(compare, Slow(), data=folder_batches(folder, max_images=33), **view).images == 33
    stored = TensorDataset(torch.randn(47, 4))
    for last, expected in ((False, 47), (True, 40)):
        loader = DataLoader(stored, 10, shuffle=True, drop_last=last)
        assert plan(compare, Slow(), data=loader, layers_a="layer").images == expected
    pairs = torch.randn(47, 4).split(10)
    two = plan(compare, Slow(), Slow(), pairs, data_b=list(pairs), layers_a="layer")
    assert two.images == 47


def test_nothing_is_left_behind(tmp_path):
    model, data = net().train(), images(40).split(10)
    before = torch.random.get_rng_state()
    plan(compare, model, data=DataLoader(TensorDataset(torch.cat(data)), 10, shuffle=True),
         checkpoint=tmp_path / "state")  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_plan_says_what_dominates_as_text_and_as_plain_values():
    found = plan(compare, net(), data=images(2000).split(50), layers_a="leaves")
    told, plain = str(found), found.to_dict()
    assert "state" not in found.disk  # nothing is saved without a checkpoint
    assert json.loads(json.dumps(plain)) == plain
    for name in ("seconds", "memory", "disk"):
        parts = getattr(found, name)
        assert plain["total"][name] == pytest.approx(sum(parts.values()))
        assert parts[plain["dominates"][name]] == max(parts.values())
        assert all(value >= 0 for value in parts.values())
        assert all(part in told for part, value in parts.items() if value)
    assert told.startswith("Sequential: 7 layers\n2,000 images in 40 batches, n = 50\nmeasured on")
    assert "a fingerprint of Sequential would be" in told


def test_two_models_of_one_architecture_are_told_apart():
    one = nn.Sequential(nn.Linear(1000, 500), nn.Linear(500, 10))
    found = plan(compare, one, one, torch.randn(40, 1000).split(8), layers_b=["0"])
    assert found.layers == {"Sequential (a)": 2, "Sequential (b)": 1}
    assert list(found.fingerprints) == list(found.layers)
    assert found.memory["models"] == 4 * (1000 * 500 + 500 + 500 * 10 + 10)  # they share them


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (123_456_789, "123.5 MB"), (2e15, "2000 TB")],
)
def test_bytes_are_written_with_four_digits(value, expected):
    from fastcka.planning import _bytes

    assert _bytes(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0123, "12.3 ms"), (59.96, "60 s"), (600, "10.0 min"), (36_000, "10.0 h")],
)
def test_times_are_written_in_their_unit(value, expected):
    from fastcka.planning import _time

    assert _time(value) == expected


def endless():
    yield torch.randn(8, 4)


REFUSALS = [
    (lambda: plan(fastcka.fingerprint, net(), [images(8)], "a.fp"), TypeError,
     "`run` must be fastcka.compare or fastcka.compare_many, but is fingerprint"),
    (lambda: plan(net(), [images(8)]), TypeError, "but is Sequential: give the function itself"),
    (lambda: plan(compare, Slow(), data=endless(), layers_a="layer"), ValueError,
     "`data` is an iterator, which gives each batch once, and a plan reads some"),
    (lambda: plan(compare, net(), data=[images(8)], layers_a="no"), ValueError,
     "has no layer 'no'"),
    (lambda: plan(compare, net(), data=[images(3)]), ValueError, "there is nothing to compute"),
    (lambda: plan(compare, net(), data=[]), ValueError, "`data` gave no batches"),
    (lambda: plan(compare, net(), data=[images(8)], distributed=True), RuntimeError,
     "`distributed` needs several"),
    (lambda: plan(compare, net(), net(seed=1), [images(8)], one_by_one=True), ValueError,
     "a plan is of models that run together: leave `one_by_one` out"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS, ids=[row[2] for row in REFUSALS])
def test_what_cannot_be_planned_is_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_one_of_several_processes_is_not_planned(monkeypatch):
    from fastcka import comparison
    from fastcka.distributed import Share

    monkeypatch.setattr(comparison, "shared", lambda: Share(0, 2))
    monkeypatch.setattr(Share, "everyone", lambda self, value: [value])
    with pytest.raises(ValueError, match="a plan is of one process: leave `distributed` out"):
        plan(compare, net(), data=list(images(40).split(10)), distributed=True)


# Memory: what a process that plans says, and what one that runs comes to.

PROGRAM = """
import sys, torch, fastcka
from fastcka import process_memory
from torch import nn

torch.manual_seed(0)
{model}
options = {{"data": data, "layers_a": "leaves", "progress": False, "checkpoint": sys.argv[2]}}
before = process_memory.resident()
if sys.argv[1] == "plan":
    print(sum(fastcka.plan(fastcka.compare, model, **options).memory.values()) - before)
else:
    process_memory.reset_peak()
    fastcka.compare(model, **options).save(sys.argv[2] + ".result")
    print(process_memory.peak() - before)
"""
LARGE = {
    "activations": """
model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1), nn.Flatten())
data = torch.randn(64, 3, 256, 256).split(16)
""",
    "saving": """
model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(200)))
data = torch.randn(8 * 260, 4).split(8)
""",
}


@pytest.mark.skipif(sys.platform == "win32", reason="the operating system does not tell the peak")
@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_the_memory_is_that_of_the_run(kind, tmp_path):
    program = PROGRAM.format(model=LARGE[kind])
    planned, real = (
        int(
            subprocess.run(
                [sys.executable, "-P", "-c", program, what, str(tmp_path / what)],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for what in ("plan", "run")
    )  # fmt: skip
    assert real > 100e6
    assert planned == pytest.approx(real, rel=0.15)


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_that_of_the_run():
    model = net(size=32).cuda()
    data = list(images(200, size=32).split(50))
    found = plan(compare, model, data=data, layers_a="leaves")
    torch.cuda.reset_peak_memory_stats()
    compare(model, data=data, layers_a="leaves", progress=False)
    real = torch.cuda.max_memory_allocated()
    assert sum(found.gpu_memory.values()) == pytest.approx(real, rel=0.15)


# The command

USUAL = ["--img-size", "32", "--batch-size", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_images(tmp_path_factory.mktemp("images"), 60, size=40))


def test_the_command_plans_what_the_other_commands_write(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["test_vit", "test_resnet", "--data", folder, *USUAL, "--calibrate", "20"]
    assert main(["plan", *models, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (err, list(tmp_path.iterdir())) == ("", [])
    told = json.loads(out)
    assert main(["compare", *models, "--quiet", "--output", "out"]) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert told["disk"]["result"] == pytest.approx(sizes.pop("result.safetensors"), rel=0.01)
    assert told["disk"]["figures and summary"] == pytest.approx(sum(sizes.values()), rel=0.15)
    assert main(["fingerprint", "test_vit", "--data", folder, *USUAL, "--quiet"]) == 0
    written = (tmp_path / "fastcka-results" / "test_vit.fp").stat().st_size
    assert told["fingerprints"]["test_vit"]["fp32"] == pytest.approx(written, rel=0.01)
    assert set(told["dominates"]) == {"seconds", "memory", "disk"}


def test_the_command_prints_a_table_and_leaves_no_image(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "test_vit", "--generate", "20", *USUAL]) == 0
    out = capsys.readouterr().out
    assert out.startswith("test_vit: 6 layers\n20 images in 2 batches, n = 16\n")
    assert "\ntime: " in out
    assert "\n  drawing" in out
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_as_compare_does(folder, capsys):
    assert main(["plan", "test_vit", "--data", folder, "--layers", "no", *USUAL]) == 1
    assert "model 'a' has no layer 'no'" in capsys.readouterr().err


def test_the_command_is_of_one_process(folder, capsys, monkeypatch):
    from contextlib import nullcontext

    from fastcka import plan_command
    from fastcka.distributed import Share

    monkeypatch.setattr(plan_command, "processes", lambda threads: nullcontext(Share(0, 2)))
    assert main(["plan", "test_vit", "--data", folder, *USUAL]) == 1
    told = capsys.readouterr().err
    assert told == "fastcka: a plan is of one process: start it without torchrun\n"
