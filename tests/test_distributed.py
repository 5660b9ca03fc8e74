"""Several processes share the batches, and have the numbers of one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from networks import images, net
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fastcka
from fastcka.course import Course
from fastcka.data import write_images
from fastcka.distributed import Share
from fastcka.streaming import BLOCKS

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32", reason="needs gloo"
)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 64])
def test_every_batch_is_dealt_to_one_process_evenly(ranks):
    dealt = Counter(
        rank for number in range(2560) for rank in range(ranks) if Share(rank, ranks).has(number)
    )
    assert dealt.total() == 2560
    assert max(dealt.values()) - min(dealt.values()) <= 10  # one in every 256


@pytest.mark.parametrize("count", [3, 40, 128, 600])
@pytest.mark.parametrize("parts", [1, 2, 3, 64, 300])
def test_the_batches_of_a_block_go_to_one_process_and_none_has_none(parts, count):
    data = [torch.zeros(4 * parts, 1)] * count
    for ranks in (2, 3, 7):
        owners, shares = {}, Counter()
        course = Course(data, 4, 1, Share(0, ranks), watched=True)
        assert len(list(course.batches(len, progress=False))) == len(range(0, count, ranks)) or (
            count > BLOCKS
        )
        for number in range(count):
            (owner,) = (r for r in range(ranks) if Share(r, ranks).has(number, course.blocks))
            shares[owner] += 1
            for part in range(parts):
                owners.setdefault(course.index(number, part) % BLOCKS, set()).add(owner)
        assert all(len(owner) == 1 for owner in owners.values())
        assert len(shares) == min(ranks, count)
        assert len(owners) == (parts * count if parts * count <= BLOCKS else min(count, BLOCKS))


# Every comparison of one launch: starting processes takes longer than all of them.
PROGRAM = """
import datetime, json, os, sys, warnings
import torch
torch.set_num_threads(1)
import fastcka
from fastcka import distributed
from torch.utils.data import DataLoader, TensorDataset
sys.path.insert(0, sys.argv[1])
from networks import images, net
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from test_distributed import CASES, folder_batches
torch.distributed.init_process_group("gloo")
rank, out = torch.distributed.get_rank(), sys.argv[2]
options = {"layers_a": "leaves", "distributed": True, "progress": False}
warnings.simplefilter("ignore")
for name, (data, more) in CASES.items():
    result = fastcka.compare(net(), data=data(), **options, **more)
    result.save(f"{out}/{name}-{rank}")
seen = []
result = fastcka.compare(
    net(size=16), data=folder_batches(f"{out}/images"),
    input_a=lambda batch: seen.append(len(batch["index"])) or batch["views"]["x"], **options
)
result.save(f"{out}/folder-{rank}")

told = {"seen": seen}
def refused(name, **changes):
    try:
        usual = {"model_a": net(), "data": list(images(40).split(10))}
        fastcka.compare(**usual | options | changes)
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"
refused("models", model_a=net(seed=rank))
refused("batches", data=list(images(40, seed=rank).split(10)))
refused("settings", estimator=["unbiased", "biased"][rank])
refused("nothing", data=[images(2)])

# Stopped in the middle, and resumed.
def stops():
    for number, batch in enumerate(images(90).split(10)):
        if number == 5:
            raise ZeroDivisionError
        yield batch
state = {"checkpoint": f"{out}/state.safetensors", "resume": True}
try:
    fastcka.compare(net(), data=stops(), **options, **state)
except ZeroDivisionError:
    pass
result = fastcka.compare(net(), data=images(90).split(10), **options, **state)
result.save(f"{out}/resumed-{rank}")
with open(f"{out}/told-{rank}.json", "w") as file:
    json.dump(told, file)
"""

CASES = {
    "uneven": (lambda: images(90).split(10), {}),  # 9 batches
    "short": (lambda: images(62).split(10), {}),  # the last is of 2
    "blocks": (lambda: images(2400, size=8).split(8), {}),  # more batches than blocks
    "parts": (lambda: images(105).split(20), {"n": 5, "passes": 2}),
    "one": (lambda: [images(40)], {}),  # a process without a batch
    "influence": (
        lambda: images(105).split(15),
        {"n": 5, "influence": [("0", "6"), ("3", "3")], "ids": lambda batch: sums_of(batch)},
    ),
}


def sums_of(batch):
    return [f"{float(image.sum()):.6f}" for image in batch]


def folder_batches(folder):
    from torchvision.transforms.functional import to_tensor

    return fastcka.data.ImageBatches(folder, {"x": to_tensor}, batch_size=10)


def torchrun(*arguments, ranks=2, **options):
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, f"--nproc-per-node={ranks}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    out = tmp_path_factory.mktemp("launched")
    write_images(out / "images", 44, size=16)
    (out / "program.py").write_text(PROGRAM)
    process = torchrun(out / "program.py", os.path.dirname(__file__), out)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same_numbers(found, expected):
    for name in ("cka", "stderr", "hsic_ab", "hsic_aa", "hsic_bb"):
        assert np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=True), name
    assert (found.n_examples, found.n_batches) == (expected.n_examples, expected.n_batches)
    assert found.warnings == expected.warnings
    assert found.images == expected.images
    assert found.influence.keys() == expected.influence.keys()
    for pair, values in expected.influence.items():
        assert np.array_equal(found.influence[pair], values)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_two_processes_have_the_bits_of_one(launched, one_thread, name, rank):
    data, options = CASES[name]
    expected = fastcka.compare(net(), data=data(), layers_a="leaves", **options)
    found = fastcka.CKAResult.load(launched / f"{name}-{rank}")
    assert_same_numbers(found, expected)
    assert found.meta["processes"] == 2
    assert found.meta["threads"] == 1


def test_a_folder_is_dealt_out_and_each_image_decoded_once(launched, one_thread):
    expected = fastcka.compare(
        net(size=16), data=folder_batches(launched / "images"), layers_a="leaves",
        input_a=lambda batch: batch["views"]["x"],
    )  # fmt: skip
    for rank in (0, 1):
        assert_same_numbers(fastcka.CKAResult.load(launched / f"folder-{rank}"), expected)
    told = [json.loads((launched / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["seen"] for one in told] == [[10, 10, 4], [10, 10]]


def test_processes_that_differ_are_refused_with_what_differs(launched):
    for rank in (0, 1):
        told = json.loads((launched / f"told-{rank}.json").read_text())
        assert re.match(
            r"ValueError: all processes must compare the same, but `weights.a` is '\w+' in "
            rf"process {rank} and '\w+' in process {1 - rank}",
            told["models"],
        )
        assert "ValueError: the processes were given different batches" in told["batches"]
        assert "`estimator` is" in told["settings"]
        assert "there is nothing to compute: no batch of 4 or more" in told["nothing"]


def test_several_processes_go_on_where_they_stopped(launched, one_thread):
    expected = fastcka.compare(net(), data=images(90).split(10), layers_a="leaves")
    for rank in (0, 1):
        found = fastcka.CKAResult.load(launched / f"resumed-{rank}")
        assert_same_numbers(found, expected)
        assert found.meta["resumed"] == [3, 2][rank]
        assert (launched / f"state-{rank}-of-2.safetensors").exists()


def test_a_sampler_that_deals_out_images_is_refused_before_anything_runs():
    data = TensorDataset(images(40))
    loader = DataLoader(data, 10, sampler=DistributedSampler(data, 2, 0))
    with pytest.raises(ValueError, match="`data` has a DistributedSampler, which gives each proce"):
        Course(loader, None, 1, Share(0, 2), watched=True).check_shared()


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 300])
def test_the_blocks_of_data_of_unknown_length_go_to_one_process_too(parts):
    course = Course(iter([torch.zeros(4 * parts, 1)] * 600), 4, 1, Share(), watched=True)
    assert len(list(course.batches(len, progress=False))) == 600
    for ranks in (2, 3):
        owners = {}
        for number in range(600):
            (owner,) = (r for r in range(ranks) if Share(r, ranks).has(number, course.blocks))
            for part in range(parts):
                owners.setdefault(course.index(number, part) % BLOCKS, set()).add(owner)
        assert all(len(owner) == 1 for owner in owners.values())


def test_one_process_alone_is_told_how_to_start_several():
    with pytest.raises(
        RuntimeError, match=r"`distributed` needs several processes: start .* torchrun"
    ):
        fastcka.compare(net(), data=[images(8)], layers_a="leaves", distributed=True)


COMPARE = ["-m", "fastcka", "compare", "test_resnet", "--img-size", "32", "--quiet", "-b", "16"]


@pytest.mark.slow
def test_the_command_under_torchrun_gives_what_it_gives_alone(tmp_path):
    folder = write_images(tmp_path / "images", 88, size=40)
    from fastcka.cli import main

    process = torchrun(
        *COMPARE, "--data", folder, "--threads", 1, "--output", tmp_path / "two", cwd=tmp_path
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out == ""
    assert err.count("untrained") == 1
    assert main(
        [*COMPARE[2:], "--data", str(folder), "--threads", "1", "--output", str(tmp_path / "one")]
    ) == 0  # fmt: skip
    results = [fastcka.CKAResult.load(tmp_path / d / "result.safetensors") for d in ("one", "two")]
    assert_same_numbers(*results)
    names = [sorted(os.listdir(tmp_path / d)) for d in ("one", "two")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_result_that_is_there_is_told_by_one_process(tmp_path):
    folder = write_images(tmp_path / "images", 88, size=40)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "result.safetensors").touch()
    process = torchrun(*COMPARE, "--data", folder, "--output", tmp_path / "two", cwd=tmp_path)
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert err.count("result.safetensors is there already") == 1


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_is_named(tmp_path):
    folder = write_images(tmp_path / "images", 600, size=40)
    process = torchrun(
        *COMPARE, "--data", folder, "--passes", 500, "--save-every", 0.2, "--output",
        tmp_path / "out", cwd=tmp_path,
    )  # fmt: skip
    victim = tmp_path / "out" / "state-1-of-2.safetensors"
    end = time.monotonic() + 300
    while not victim.exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    for pid in children(process.pid):
        if environment(pid).get("RANK") == "1":
            os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert re.search(r"rank\s*:\s*1 ", err)
    assert "SIGKILL" in err
    # What both had is there to go on from.
    assert {"state-0-of-2.safetensors", victim.name} <= set(os.listdir(tmp_path / "out"))


def children(pid):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


def environment(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        return {name.decode(): value.decode(errors="replace") for name, _, value in pairs}
