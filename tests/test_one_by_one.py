"""Models that run one after the other have the bits of those that run together."""

import errno
import gc
import json
import os
import random
import tempfile
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch
from networks import images, net
from test_checkpoint import Counting, Stop, StopsAfter, assert_same_bits
from test_fingerprints import Data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import CKAWarning
from fastcka.cli import main
from fastcka.data import ImageBatches, write_images
from fastcka.fingerprints import PARTS, Fingerprint, FingerprintWriter
from fastcka.one_by_one import room
from fastcka.participant import Participant

NETS = {"thin": {}, "wide": {"width": 9}, "other": {"seed": 1}}


def compare_many(data, models=None, **options):
    models = models or {name: net(**one) for name, one in NETS.items()}
    options = {"layers": "leaves", "progress": False} | options
    return fastcka.compare_many(models, data, **options)


def assert_same_results(found, expected):
    assert list(found) == list(expected)
    for pair in expected:
        assert_same_bits(found[pair], expected[pair])
        assert found[pair].images == expected[pair].images
        assert found[pair].influence.keys() == expected[pair].influence.keys()
        for name, value in expected[pair].influence.items():
            assert found[pair].influence[name].tobytes() == value.tobytes(), name
        one, other = found[pair].null, expected[pair].null
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes()
        assert found[pair].also.keys() == expected[pair].also.keys()
        for name, value in expected[pair].also.items():
            assert found[pair].also[name].tobytes() == value.tobytes(), name
        other = {"date", "command", "one_by_one", "resumed"}
        one, two = ({k: v for k, v in r.meta.items() if k not in other}
                    for r in (found[pair], expected[pair]))  # fmt: skip
        assert repr(one) == repr(two)  # NaN is not itself
        assert found[pair].meta["one_by_one"]
        assert not expected[pair].meta["one_by_one"]


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where things lie meanwhile, and what may not be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []


INFLUENCE = [(("thin", "0"), ("other", "6")), (("wide", "3"), ("wide", "4"))]
CASES = {
    "usual": {},
    "parts": {"n": 5},
    "two passes": {"passes": 2, "n": 10},
    "equal, biased, rbf": {"weighting": "equal", "estimator": "biased", "gram": "rbf"},
    "chance and others": {"calibrate": 20, "also": ["rsa_cosine", "mutual_knn", "effective_rank"]},
    "chance in parts": {"calibrate": 3, "n": 5},
    "operand": {"operand": "bf16"},
    "autocast": {"autocast": "bf16"},
    "torch": {"backend": "torch"},
    "single images": {"influence": INFLUENCE},
    "single images by name, in parts": {
        "influence": INFLUENCE, "ids": lambda batch: names(batch), "n": 5,
    },
}  # fmt: skip


def names(batch):
    return [f"{float(image.sum()):.6f}" for image in batch]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.* left out")
def test_the_bits_are_those_of_models_that_run_together(name):
    options = CASES[name]
    data = list(images(62).split(10))  # the last one is of 2, too small
    found = compare_many(data, one_by_one=True, **options)
    assert_same_results(found, compare_many(data, **options))


@pytest.mark.parametrize("known", [True, False], ids=["a list", "no length"])
def test_more_cka_batches_than_blocks(known):
    class Unknown:
        def __iter__(self):
            return iter(images(4 * 300).split(20))

    data = list(Unknown()) if known else Unknown()
    models = {"a": net(), "b": net(seed=1)}
    pairs = [(("a", "0"), ("b", "6"))]
    options = {"n": 4, "layers": ["0", "6"], "calibrate": 2, "influence": pairs, "ids": names}
    found = compare_many(data, models, one_by_one=True, **options)
    assert_same_results(found, compare_many(data, models, **options))


def test_two_models_with_loaders_and_inputs_of_their_own():
    x = images(40)
    options = {
        "data": list(x.split(10)), "data_b": [2 * one for one in x.split(10)],
        "layers_a": ["0", "2"], "layers_b": "leaves", "input_b": lambda x: x.flip(3),
        "forward_a": lambda model, x: model(x + 1), "progress": False,
    }  # fmt: skip
    expected = fastcka.compare(net(), net(seed=1), **options)
    found = fastcka.compare(net(), lambda: net(seed=1), one_by_one=True, **options)
    assert_same_results({"": found}, {"": expected})


def test_what_is_to_be_minded_is_told_as_if_they_had_run_together(recwarn):
    x, labels = images(80), torch.arange(80) // 10
    x[13, 0, 0, 0] = float("nan")
    data = DataLoader(TensorDataset(x, labels), 10)
    expected = compare_many(data)
    first = [str(one.message) for one in recwarn.list if one.category is CKAWarning]
    recwarn.clear()
    found = compare_many(data, one_by_one=True)
    assert_same_results(found, expected)
    told = [str(one.message) for one in recwarn.list if one.category is CKAWarning]
    assert list(dict.fromkeys(told)) == list(dict.fromkeys(first))
    assert {os.path.basename(one.filename) for one in recwarn.list} == {"test_one_by_one.py"}
    for text in ("stored order", "sorted by class", "inf or NaN"):
        assert any(text in one for one in told)


class Device:
    """Counts the models that are there at once, wherever they came from."""

    def __init__(self):
        self.models, self.most = weakref.WeakSet(), 0

    def make(self, **options):
        model = net(**options)
        self.models.add(model)
        model.register_forward_pre_hook(lambda *_: self.see())
        return model

    def see(self):
        self.most = max(self.most, len(self.models))


def test_models_that_functions_make_are_there_one_at_a_time():
    device, data = Device(), list(images(40).split(10))
    expected = compare_many(data)
    makers = {name: lambda one=one: device.make(**one) for name, one in NETS.items()}
    gc.disable()  # as soon as they are done, not when somebody cleans up
    try:
        found = compare_many(data, makers, one_by_one=True)
        assert device.most == 1
        assert len(device.models) == 0
    finally:
        gc.enable()
    assert_same_results(found, expected)


def test_models_of_the_caller_are_on_the_device_one_at_a_time(monkeypatch):
    there, most = set(), []
    ready = Participant.ready

    def counted(self):
        from contextlib import contextmanager

        @contextmanager
        def inner():
            with ready(self):
                there.add(self.label)
                most.append(len(there))
                yield
            there.discard(self.label)

        return inner()

    monkeypatch.setattr(Participant, "ready", counted)
    data = list(images(20).split(10))
    compare_many(data)
    assert max(most) == 3
    most.clear()
    compare_many(data, one_by_one=True)
    assert most == [1, 1, 1]


@pytest.mark.gpu
def test_the_memory_of_a_gpu_holds_one_model_at_a_time():
    width = 20_000

    def made():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width))

    data = list(images(40).split(10))
    peaks = []
    for one_by_one in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        models = {name: made() for name in "abcd"}
        compare_many(data, models, device="cuda", one_by_one=one_by_one)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] - peaks[1] > 2 * (4 * width * 3 * 8 * 8)  # of three, with room for the rest


# The data, which are read once a model


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_loader_that_shuffles_gives_every_model_the_same_order(generator):
    def data():
        return DataLoader(TensorDataset(images(60)), 10, shuffle=True, generator=generator)

    def seeded():
        torch.manual_seed(3)
        if generator is not None:
            generator.manual_seed(3)

    models = {name: net(**one) for name, one in NETS.items()}
    seeded()
    expected = compare_many(data(), models, passes=2)
    state = torch.get_rng_state()
    seeded()
    assert_same_results(compare_many(data(), models, passes=2, one_by_one=True), expected)
    if generator is not None:
        assert torch.equal(torch.get_rng_state(), state)


def test_networks_that_are_made_in_turn_do_not_begin_with_the_same_numbers():
    data = DataLoader(TensorDataset(images(40)), 10, shuffle=True)
    made = []

    def make():
        made.append(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)))
        return made[-1]

    compare_many(data, {"a": make, "b": make}, one_by_one=True)
    one, other = (model[1].weight for model in made)
    values = set(one.flatten().tolist())
    assert not values & set(other.flatten().tolist())


class Changing:
    """Another order, or another number, each time."""

    def __init__(self, change):
        self.change, self.times = change, 0

    def __iter__(self):
        self.times += 1
        batches = list(images(60).split(10))
        if self.times > 1:
            self.change(batches)
        return iter(batches)


def a_pixel(batches):
    batches[2] = batches[2].clone()
    batches[2][7, 0, 0, 0] += 1e-3


OTHERS = {
    "order": (lambda b: random.Random(0).shuffle(b), r"batch 0 of `data` is another one for model"),
    "values": (a_pixel, r"batch 2 of `data` is another one for model 'wide' than for 'thin': with"),
    "fewer": (
        lambda b: b.pop(),
        r"gives fewer batches to model 'wide' than to 'thin', which had 6",
    ),
    "more": (lambda b: b.append(b[0]), r"`data` gives more batches to model 'wide' than to 'thin'"),
    "sizes": (
        lambda b: b.append(b.pop()[:5]),
        r"batch 5 of `data` is another one for model 'wide'",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_data_that_change_between_models_are_refused(name):
    change, text = OTHERS[name]
    with pytest.raises(ValueError, match=text) as caught:
        compare_many(Changing(change), one_by_one=True)
    assert "\n" not in str(caught.value)
    assert not hasattr(caught.value, "partial")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 44, size=16)


class Decoded:
    def __init__(self):
        self.seen = 0

    def __call__(self, image):
        self.seen += 1
        return to_tensor(image)

    def __repr__(self):
        return "to_tensor"


VIEW = {name: lambda batch: batch["views"]["x"] for name in ("a", "b")}


def of_folder(folder, transform=to_tensor, **options):
    return ImageBatches(folder, {"x": transform}, batch_size=10, **options)


@pytest.mark.parametrize("options", [{}, {"passes": 2}, {"influence": [(("a", "0"), ("b", "6"))]}])
def test_a_folder_is_decoded_once_a_model_and_described_as_ever(folder, options):
    models = {"a": net(size=16), "b": net(size=16, seed=1)}
    options = {"inputs": VIEW} | options
    decoded = Decoded()
    expected = compare_many(of_folder(folder, decoded), models, **options)
    before, decoded.seen = decoded.seen, 0
    found = compare_many(of_folder(folder, decoded), models, one_by_one=True, **options)
    assert decoded.seen == 2 * before
    assert_same_results(found, expected)
    assert found["a", "b"].meta["data"]["files_used"] == 44


def test_a_file_that_changes_between_models_is_noticed(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    data = of_folder(tmp_path / "copy")
    one, *_ = sorted((tmp_path / "copy").rglob("*.png"))

    def make():
        if make.times == 1:
            content = bytearray(one.read_bytes())
            content[-1] ^= 1  # of the checksum of the last chunk, which nobody looks at
            one.write_bytes(content)
        make.times += 1
        return net(size=16, seed=make.times)

    make.times = 0
    with pytest.raises(ValueError, match="of `data` is another one for model 'b' than for 'a'"):
        compare_many(data, {"a": make, "b": make}, inputs=VIEW, one_by_one=True)


@pytest.mark.filterwarnings("ignore:.* left out")
def test_images_that_cannot_be_read_are_left_out_and_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    files = sorted((tmp_path / "copy").rglob("*.png"))
    for file in files[3:8]:
        file.write_bytes(b"no image")
    models = {"a": net(size=16), "b": net(size=16, seed=1)}
    options = {"inputs": VIEW, "n": 5}
    expected = compare_many(of_folder(tmp_path / "copy", on_broken="skip"), models, **options)
    found = compare_many(
        of_folder(tmp_path / "copy", on_broken="skip"), models, one_by_one=True, **options
    )
    assert_same_results(found, expected)
    assert len(found["a", "b"].meta["data"]["broken"]) == 5


# With fingerprints


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.filterwarnings("ignore:.* left out")
def test_models_that_do_not_run_take_part(tmp_path, place):
    data = Data(count=67, batch_size=10)  # the last one is of 5 and 2
    fastcka.fingerprint(net(seed=5), data, tmp_path / "stored.fp", ids=data.ids, layers="leaves",
                        progress=False, n=5)  # fmt: skip
    named = list({"a": net(), "b": net(seed=1)}.items())
    named.insert(place, ("stored", tmp_path / "stored.fp"))
    pairs = [(("stored", "0"), ("b", "6")), (("a", "0"), ("b", "0"))]
    options = {"ids": data.ids, "n": 5, "calibrate": 3, "influence": pairs}
    expected = compare_many(data, dict(named), **options)
    assert expected["a", "b"].images == tuple(range(65))
    found = compare_many(data, dict(named), one_by_one=True, **options)
    assert_same_results(found, expected)


def test_other_images_than_those_of_a_fingerprint_are_told_at_once(tmp_path):
    data, other = Data(), Data(seed=1)
    fastcka.fingerprint(net(), data, tmp_path / "a.fp", ids=data.ids, layers="leaves",
                        progress=False)  # fmt: skip
    other.ids = lambda batch: [i + 1000 for i in Data.ids(other, batch)]
    model = Counting(net())
    models = {"stored": tmp_path / "a.fp", "x": model, "y": net()}
    with pytest.raises(ValueError, match="batch 0 of `data` holds other images than any batch of"):
        compare_many(other, models, ids=other.ids, one_by_one=True, layers="**")
    assert model.calls == 1
    with pytest.raises(ValueError, match="the batches do not say which: give `ids`"):
        compare_many(other, models, one_by_one=True, layers="**")


def test_exact_fingerprints_are_what_was_computed(tmp_path):
    data, stacks = Data(), []
    add = FingerprintWriter.add

    def seen(self, parts):
        parts = list(parts)
        stacks.extend(stack for stack, _ in parts)
        add(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FingerprintWriter, "add", seen)
        fastcka.fingerprint(net(), data, tmp_path / "a.fp", ids=data.ids, layers="leaves",
                            dtype="fp64", progress=False)  # fmt: skip
    found = Fingerprint(tmp_path / "a.fp")
    for number, stack in enumerate(stacks):
        again = found.stack(number)
        for part in PARTS[:-1]:
            if part != "scale":
                assert torch.equal(getattr(again, part), getattr(stack, part))
        assert torch.equal(again.eps, stack.eps)


# Going on


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def counted():
    return {name: Counting(net(**one)) for name, one in NETS.items()}


DEEP = {"layers": "**", "one_by_one": True, "resume": True, "n": 5}
DEEP_INFLUENCE = [(("thin", "network.0"), ("other", "network.6"))]


@pytest.mark.parametrize("count", [2, 6, 9, 12, 17])
def test_it_goes_on_where_it_stopped(path, count, monkeypatch):
    data, first, again = list(images(60).split(10)), counted(), counted()
    options = DEEP | {"influence": DEEP_INFLUENCE, "ids": names}
    left = StopsAfter(data, count)

    class Reads:
        def __iter__(self):
            return iter(left)

    with pytest.raises(Stop) as caught:
        compare_many(Reads(), first, checkpoint=path, **options)
    assert not hasattr(caught.value, "partial")
    assert sum(model.calls for model in first.values()) == count
    assert os.listdir(path.parent).count("state.grams") == 1
    found = compare_many(data, again, checkpoint=path, **options)
    calls = [model.calls for model in again.values()]
    assert sum(calls) == 18 - count
    assert calls == [max(0, 6 * k + 6 - max(count, 6 * k)) for k in range(3)]
    expected = compare_many(data, counted(), layers="**", n=5, influence=DEEP_INFLUENCE, ids=names)
    assert_same_results(found, expected)
    left_there = sorted(os.listdir(path.parent / "state.grams"))
    assert left_there == ["0.state", "1.state", "2.state"]
    monkeypatch.setattr(Participant, "ready", None)  # none goes to the device, nothing is read
    unread = type("list", (list,), {"__iter__": None})(data)
    assert_same_results(compare_many(unread, counted(), checkpoint=path, **options), expected)


def test_it_goes_on_where_it_stopped_comparing(path, monkeypatch):
    data = list(images(60).split(10))
    add, calls = fastcka.MinibatchCKA.add, []

    def fails(self, stacks, **options):
        if len(stacks) == 3:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
        return add(self, stacks, **options)

    monkeypatch.setattr(fastcka.MinibatchCKA, "add", fails)
    with pytest.raises(KeyboardInterrupt) as caught:
        compare_many(data, counted(), checkpoint=path, save_every=0, **DEEP | {"n": None})
    assert len(caught.value.partial) == 6
    again = counted()
    calls.clear()
    calls += [1] * 4
    found = compare_many(data, again, checkpoint=path, **DEEP | {"n": None})
    assert len(calls) == 4 + 3  # three batches were behind
    assert sum(model.calls for model in again.values()) == 0
    assert found["thin", "wide"].meta["resumed"] == 3
    assert_same_results(found, compare_many(data, counted(), layers="**"))


def test_what_differs_is_refused(path, tmp_path):
    data = list(images(60).split(10))
    left = StopsAfter(data, 8)

    class Reads:
        def __iter__(self):
            return iter(left)

    with pytest.raises(Stop):
        compare_many(Reads(), counted(), checkpoint=path, **DEEP)
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match=r"state.grams holds the state of an unfinished comp"):
        compare_many(data, counted(), checkpoint=path, **DEEP | {"resume": False})
    with pytest.raises(ValueError, match=r"state.grams is of models that ran one by one; ask for"):
        compare_many(data, counted(), checkpoint=path, **DEEP | {"one_by_one": False})
    with pytest.raises(ValueError, match=r"cannot resume from .*0.state: `n` is 10 now, and was 5"):
        compare_many(data, counted(), checkpoint=path, **DEEP | {"n": 10})
    for name in ("thin", "wide"):
        models = counted() | {name: Counting(net(seed=9))}
        with pytest.raises(ValueError, match=rf"`weights.{name}` is .* there"):
            compare_many(data, models, checkpoint=path, **DEEP)
    with pytest.raises(ValueError, match=r"`kept.named` is True now, and was False there"):
        compare_many(data, counted(), checkpoint=path, influence=DEEP_INFLUENCE, **DEEP)
    with pytest.raises(ValueError, match=r"batch 0 of `data` is another one|gives other batches"):
        compare_many(list(images(60, seed=3).split(10)), counted(), checkpoint=path, **DEEP)
    assert {file: file.read_bytes() for file in before} == before
    other = tmp_path / "other"
    with pytest.raises(Stop):
        compare_many(StopsAfter(data, 3), counted(), checkpoint=other, **DEEP | {"one_by_one": 0})
    with pytest.raises(
        ValueError, match=r"other: there is no .*other.grams beside it, where models"
    ):
        compare_many(data, counted(), checkpoint=other, **DEEP)


# What is refused


def test_what_cannot_be_is_refused_before_anything_runs(path, monkeypatch):
    data, models = list(images(20).split(10)), counted()

    def refused(kind, text, data=data, models=models, **options):
        with pytest.raises(kind, match=text):
            compare_many(data, models, **{"one_by_one": True, "layers": "**"} | options)

    refused(ValueError, "`one_by_one` is for two models or more that run, but there is 1",
            models={"a": models["thin"]})  # fmt: skip
    refused(ValueError, "reads `data` once a model, but an iterator can be", data=iter(data))
    refused(ValueError, "`also` must|unknown|`also`", also=["nothing"])
    refused(ValueError, "`weighting` must be one of", weighting="none")
    refused(ValueError, "has no layer 'nowhere'", layers={"other": "nowhere"})
    refused(ValueError, "`influence` names model 'x', but the models are thin, wide, other",
            influence=[(("thin", "0"), ("x", "0"))])  # fmt: skip
    refused(TypeError, r"`models\['x'\]` must be a torch.nn.Module, but is function; one that",
            models={"x": net}, one_by_one=False)  # fmt: skip
    refused(TypeError, r"the function that makes model 'x' must return a torch.nn.Module, but r",
            models={"x": lambda: "net", "y": net})  # fmt: skip
    assert sum(model.calls for model in models.values()) == 0


@pytest.mark.parametrize("place", [0, 1])
def test_a_layer_that_is_not_there_is_told_at_the_first_batch_of_its_model(place):
    data, models = list(images(20).split(10)), counted()
    pair = (("thin", "network.0"), (list(models)[place], "network.9"))
    text = f"names layer 'network.9', which is none of those compared of model '{pair[1][0]}'"
    with pytest.raises(ValueError, match=text):
        compare_many(data, models, one_by_one=True, layers="**", influence=[pair])
    assert [model.calls for model in models.values()] == [[1, 0, 0], [2, 1, 0]][place]


def test_a_disk_that_is_too_small_is_told_at_the_first_batch(monkeypatch):
    data, models = list(images(40).split(10)), counted()
    free = namedtuple("usage", "free")
    asked = []

    def usage(folder):
        asked.append(folder)
        return free(enough)

    monkeypatch.setattr("shutil.disk_usage", usage)
    # Of a batch 8 bytes for n(n-1)/2 entries, 2 n sums, a scale, 5 numbers a layer, and the names.
    layers = 8
    each = 4 * (layers * 8 * (10 * 9 // 2 + 2 * 10 + 1 + 5) + 8 * 10)
    assert room([layers] * 3, [10] * 4, "unbiased") == 4 * each
    known = len(models) * each + each
    enough = known - 1
    with pytest.raises(
        OSError, match=r"models that run one by one leave .* MB in .*, where .* MB are free: make"
    ):
        compare_many(data, models, one_by_one=True, layers="**", n=10)
    assert [model.calls for model in models.values()] == [1, 0, 0]
    enough = known
    compare_many(data, models, one_by_one=True, layers="**", n=10)
    assert len(asked) == 4


def test_a_full_disk_leaves_what_can_be_gone_on_from(path, monkeypatch):
    data, values, calls = list(images(60).split(10)), FingerprintWriter._values, []

    def full(self, *given):
        calls.append(1)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return values(self, *given)

    monkeypatch.setattr(FingerprintWriter, "_values", full)
    with pytest.raises(OSError, match=r"cannot write .*1.fp: No space left on device"):
        compare_many(data, counted(), checkpoint=path, **DEEP | {"n": None})
    again = counted()
    found = compare_many(data, again, checkpoint=path, **DEEP | {"n": None})
    assert [model.calls for model in again.values()] == [0, 4, 6]
    assert_same_results(found, compare_many(data, counted(), layers="**"))


def test_what_is_kept_is_what_is_said(monkeypatch):
    data, sizes = list(images(60).split(10)), []
    finish = FingerprintWriter.finish

    def seen(self, *args):
        sizes.append(self._end)
        finish(self, *args)

    monkeypatch.setattr(FingerprintWriter, "finish", seen)
    found = compare_many(data, one_by_one=True)
    layers = len(found["thin", "thin"].layers_a)
    assert sum(sizes) + max(sizes) == room([layers] * 3, [10] * 6, "unbiased")


def test_nothing_of_this_costs_models_that_run_together(monkeypatch):
    monkeypatch.setattr("fastcka.one_by_one.Rewound", None)
    monkeypatch.setattr("fastcka.keeping.Keeper", None)
    result = compare_many([images(8)])
    assert np.isfinite(result["thin", "wide"].cka).all()


# Several processes


def between(options):
    """Options of `compare` as those of `compare_many`."""
    pairs = [tuple(zip("ab", pair, strict=True)) for pair in options.get("influence", ())]
    return options | {"influence": pairs}


PROGRAM = """
import json, os, sys, warnings
import torch
torch.set_num_threads(1)
import fastcka
sys.path.insert(0, sys.argv[1])
from networks import images, net
from test_distributed import CASES, folder_batches
from test_one_by_one import between
torch.distributed.init_process_group("gloo")
rank, out = torch.distributed.get_rank(), sys.argv[2]
usual = {"distributed": True, "progress": False, "one_by_one": True}
warnings.simplefilter("ignore")
makers = {"a": net, "b": lambda: net(seed=1)}
for name, (data, more) in CASES.items():
    results = fastcka.compare_many(makers, data(), layers="leaves", **usual, **between(more))
    results.save(f"{out}/{name}-{rank}")
seen = []
fastcka.compare(
    lambda: net(size=16), lambda: net(size=16, seed=1), folder_batches(f"{out}/images"),
    input_a=lambda batch: seen.append(len(batch["index"])) or batch["views"]["x"],
    input_b=lambda batch: batch["views"]["x"], layers_a="leaves", **usual
).save(f"{out}/folder-{rank}")

told = {"seen": seen}
def refused(name, models=makers, data=images(40).split(10), **changes):
    try:
        fastcka.compare_many(models, list(data), layers="leaves", **usual | changes)
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"
refused("models", models={"a": net, "b": lambda: net(seed=5 + rank)})
refused("batches", data=images(40, seed=rank).split(10))

# Stopped in the second model by one process alone, and resumed.
state = {"checkpoint": f"{out}/state.safetensors", "resume": True, "save_every": 0}
class Stops:
    left = 9 + 7 if rank else 1000
    def __iter__(self):
        for batch in images(90).split(10):
            self.left -= 1
            if self.left < 0:
                os._exit(7)
            yield batch
if sys.argv[3] == "stops":
    fastcka.compare_many(makers, Stops(), layers="leaves", **usual, **state)
calls = []
makers["b"] = lambda: net(seed=1).requires_grad_(calls.append(1) or False)
results = fastcka.compare_many(makers, images(90).split(10), layers="leaves", **usual, **state)
results.save(f"{out}/resumed-{rank}")
told["left"] = sorted(os.listdir(f"{out}/state-{rank}-of-2.safetensors.grams"))
with open(f"{out}/told-{rank}.json", "w") as file:
    json.dump(told, file)
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    from test_distributed import torchrun

    out = tmp_path_factory.mktemp("launched")
    write_images(out / "images", 44, size=16)
    (out / "program.py").write_text(PROGRAM)
    for how in ("stops", "goes on"):
        process = torchrun(out / "program.py", os.path.dirname(__file__), out, how)
        _, err = process.communicate(timeout=300)
        assert (process.returncode == 0) == (how == "goes on"), err
        if how == "stops":
            assert {f"state-{rank}-of-2.safetensors.grams" for rank in (0, 1)} <= set(
                os.listdir(out)
            )
    return out


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs gloo")
@pytest.mark.filterwarnings("ignore:.* left out")
def test_several_processes_each_keep_their_own_batches(launched):
    from test_distributed import CASES, assert_same_numbers, folder_batches

    models, threads = {"a": net(), "b": net(seed=1)}, torch.get_num_threads()
    torch.set_num_threads(1)
    cases = CASES | {"resumed": (lambda: images(90).split(10), {})}
    expected = {
        name: compare_many(data(), models, **between(more)) for name, (data, more) in cases.items()
    }
    whole = fastcka.compare(
        net(size=16), net(size=16, seed=1), folder_batches(launched / "images"),
        input_a=VIEW["a"], input_b=VIEW["a"], layers_a="leaves",
    )  # fmt: skip
    torch.set_num_threads(threads)
    for rank in (0, 1):
        for name, results in expected.items():
            found = fastcka.CKAResults.load(launched / f"{name}-{rank}")
            for pair in results:
                assert_same_numbers(found[pair], results[pair])
                assert found[pair].meta["processes"] == 2
        assert_same_numbers(fastcka.CKAResult.load(launched / f"folder-{rank}"), whole)
    told = [json.loads((launched / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["seen"] for one in told] == [[10, 10, 4], [10, 10]]
    for one in told:
        assert one["left"] == ["0.state", "1.state"]
        assert "all processes must compare the same, but `weights.b` is" in one["models"]
        assert "the processes were given different batches" in one["batches"]


# The command


MODELS = ("test_vit", "test_resnet", "test_vit")


def command(folder, output, *more, models=MODELS, expect=0):
    usual = ["compare", *models, "--data", str(folder), "--output", str(output), *more]
    assert main([*usual, "--img-size", "32", "--batch-size", "10"]) == expect


def results_of(folder):
    path = folder / "result.safetensors"
    try:
        return fastcka.CKAResults.load(path)
    except ValueError:
        return {"": fastcka.CKAResult.load(path)}


@pytest.mark.parametrize(
    ("count", "pair"),
    [(2, ["blocks.0", "layer1.0"]), (3, ["test_vit:blocks.0", "test_resnet:layer1.0"])],
)
def test_the_command_gives_what_it_gives_together(folder, tmp_path, capsys, count, pair):
    options = {"models": MODELS[:count]}
    command(folder, tmp_path / "together", "--influence", *pair, **options)
    command(folder, tmp_path / "alone", "--one-by-one", "--influence", *pair, **options)
    expected, found = (results_of(tmp_path / name) for name in ("together", "alone"))
    assert_same_results(found, expected)
    assert sorted(os.listdir(tmp_path / "alone")) == sorted(os.listdir(tmp_path / "together"))
    one, other = ((tmp_path / name / "influence.csv").read_text() for name in ("alone", "together"))
    assert one == other
    err = capsys.readouterr().err
    assert "one by one: up to 0." in err
    assert err.count("untrained, for want of --pretrained") == 2


def test_the_command_loads_one_model_at_a_time(folder, tmp_path, monkeypatch):
    from fastcka import models

    load, alive, most = models.load, weakref.WeakSet(), []

    def loaded(*args, **options):
        network = load(*args, **options)
        alive.add(network.module)
        most.append(len(alive))
        return network

    monkeypatch.setattr(models, "load", loaded)
    gc.collect()
    gc.disable()
    try:
        command(folder, tmp_path / "out", "--one-by-one", "--quiet")
    finally:
        gc.enable()
    assert most == [1] * 6  # once to look at it, once to run it


def test_the_command_goes_on(folder, tmp_path, monkeypatch, capsys):
    command(folder, tmp_path / "whole")
    add, calls = FingerprintWriter.add, []

    def stops(self, parts):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        add(self, parts)

    monkeypatch.setattr(FingerprintWriter, "add", stops)
    out = tmp_path / "out"
    command(folder, out, "--one-by-one", expect=130)
    assert f"what was measured until then is in {out}; --resume goes on" in capsys.readouterr().err
    assert os.listdir(out) == ["state.safetensors.grams"]
    command(folder, out, "--one-by-one", expect=1)
    assert "holds an unfinished run: add --resume" in capsys.readouterr().err
    command(folder, out, "--resume", expect=1)
    assert "is of models that ran one by one" in capsys.readouterr().err
    command(folder, out, "--one-by-one", "--resume")
    assert len(calls) == 8 + 15 - 7
    assert_same_results(results_of(out), results_of(tmp_path / "whole"))
    assert not any("state" in name for name in os.listdir(out))
    calls[:] = [1] * 2
    command(folder, out, "--one-by-one", "--overwrite", expect=130)
    command(folder, out, "--one-by-one", "--overwrite")
    assert_same_results(results_of(out), results_of(tmp_path / "whole"))


def test_the_command_tells_of_a_disk_that_is_too_small_before_anything_runs(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: namedtuple("usage", "free")(1000))
    command(folder, tmp_path / "out", "--one-by-one", expect=1)
    err = capsys.readouterr().err
    assert "fastcka: models that run one by one leave" in err
    assert "where 0.0 MB are free: make room" in err
    assert not (tmp_path / "out").exists()
    command(folder, tmp_path / "out", "--one-by-one", models=MODELS[:1], expect=1)
