"""A model measured once gives the numbers of a model that runs; other images are refused."""

import os

import numpy as np
import pytest
import torch
from networks import images, net
from safetensors import safe_open
from tolerance import CKA, FLOAT64, OPERAND, assert_close
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import CKAResult, Fingerprint, fingerprints
from fastcka.cli import main
from fastcka.data import ImageBatches, write_images
from fastcka.fingerprints import image_numbers

ARRAYS = ("cka", "stderr", "hsic_ab", "hsic_aa", "hsic_bb")


class Data:
    """Batches that know which images they hold: numbers from 0 on."""

    def __init__(self, count=70, batch_size=20, seed=0):
        self.x = images(count, seed=seed)
        self.order = torch.arange(count).split(batch_size)

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return (self.x[i] for i in self.order)

    def ids(self, batch):
        return [int((self.x == one).flatten(1).all(1).nonzero()) for one in batch]


def fingerprint(path, data=None, model=None, **options):
    data = data or Data()
    options = {"layers": "leaves", "ids": data.ids, "progress": False} | options
    return fastcka.fingerprint(model or net(), data, path, **options)


def compare(a, b=None, data=None, **options):
    options = {"progress": False} | options
    if data is not None:
        options = {"layers_a": "leaves", "ids": data.ids} | options
    return fastcka.compare(a, b, data, **options)


def assert_same(found, expected, tolerance=FLOAT64):
    assert_close(found.cka, expected.cka, tolerance)
    assert_close(found.stderr, expected.stderr, tolerance)
    assert (found.layers_a, found.layers_b) == (expected.layers_a, expected.layers_b)
    assert (found.n_examples, found.n_batches) == (expected.n_examples, expected.n_batches)


# Entries rounded to 24 and 11 bits, like those that an operand rounds.
ROUNDED = {"fp32": OPERAND["fp32"], "fp16": OPERAND["fp16"]}


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize(
    "options",
    [{}, {"estimator": "biased"}, {"gram": "rbf", "bandwidth": 0.5}, {"n": 10}],
    ids=["unbiased", "biased", "rbf", "parts"],
)
def test_fingerprints_give_the_numbers_of_models_that_run(tmp_path, dtype, options):
    data, other = Data(), net(seed=1)
    a = fingerprint(tmp_path / "a.fp", dtype=dtype, **options)
    b = fingerprint(tmp_path / "b.fp", model=other, dtype=dtype, **options)
    expected = compare(net(), other, data, **options)
    alone = {name: value for name, value in options.items() if name != "n"}
    assert_same(compare(a, b, **alone), expected, ROUNDED[dtype])
    assert_same(compare(tmp_path / "a.fp", str(tmp_path / "b.fp"), **alone), expected, CKA * 20)
    assert_same(compare(net(), b, data, **options), expected, ROUNDED[dtype])
    assert_same(compare(a, other, data, **options), expected, ROUNDED[dtype])
    itself = compare(a, **alone)
    assert_close(itself.cka.diagonal().copy(), np.ones(len(a.layers)), FLOAT64)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_two_fingerprints_of_one_model_are_equal_though_they_are_rounded(tmp_path, dtype):
    a, b = (fingerprint(tmp_path / name, dtype=dtype) for name in ("a.fp", "b.fp"))
    assert_close(np.diag(compare(a, b).cka).copy(), np.ones(len(a.layers)), FLOAT64)


def test_a_fingerprint_says_what_it_is(tmp_path):
    found = fingerprint(tmp_path / "a.fp", about={"name": "mine"})
    assert repr(found) == "Fingerprint(mine, 7 layers, 70 images in 4 batches)"
    result = compare(found)
    assert result.models == ("mine",)
    assert result.meta["models"]["a"]["fingerprint"] == "a.fp"
    assert found.meta["estimator"] == "unbiased"
    with safe_open(tmp_path / "a.fp", "np") as file:
        assert file.get_tensor("0.packed").shape == (7, 190)
        assert file.get_tensor("0.images").tolist() == list(range(20))
    assert os.listdir(tmp_path) == ["a.fp"]


def test_it_takes_two_bytes_an_image_of_its_batch_and_layer(tmp_path):
    sizes = {}
    for dtype in ROUNDED:
        fingerprint(tmp_path / dtype, Data(256, 128), dtype=dtype)
        sizes[dtype] = os.path.getsize(tmp_path / dtype)
    entries = 7 * 2 * 128 * 127 // 2
    extra = sizes["fp32"] - 4 * entries
    assert sizes["fp16"] - 2 * entries == pytest.approx(extra, abs=64)
    assert extra < 7 * 256 * 24 + 12_000  # diagonal and row sums; the header


@pytest.mark.parametrize("changed", ["other images", "order in a batch", "other batches", "fewer"])
def test_other_images_or_another_order_are_an_error(tmp_path, changed):
    data = Data()
    found = fingerprint(tmp_path / "a.fp", data)
    other = Data()
    if changed == "other images":
        other.ids = lambda batch: [i + 1000 for i in Data.ids(other, batch)]
    elif changed == "order in a batch":
        other.order = [i.flip(0) for i in data.order]
    elif changed == "other batches":
        other.order = torch.arange(70).split(10)
    else:
        other.order = data.order[:2]
        with pytest.warns(fastcka.CKAWarning, match=r"a.fp holds 4 batches, compared are 2"):
            compare(net(), found, other)
        return
    with pytest.raises(ValueError, match=r"batch 0 of `data` holds other images than any batch of"):
        compare(net(), found, other)
    second = fingerprint(tmp_path / "b.fp", other)
    with pytest.raises(
        ValueError, match=r"holds other images than any batch of .*b.fp, or in anot"
    ):
        compare(found, second)


def test_batches_may_come_in_another_order(tmp_path):
    data, other = Data(), Data()
    found = fingerprint(tmp_path / "a.fp", data)
    other.order = data.order[::-1]
    assert_same(
        compare(net(seed=1), found, other), compare(net(seed=1), net(), data), OPERAND["fp32"]
    )


def test_what_it_was_made_with_must_be_asked_for(tmp_path):
    found = fingerprint(tmp_path / "a.fp", estimator="biased")
    with pytest.raises(
        ValueError, match=r"`estimator` is 'unbiased', but .*a.fp was made with 'bia"
    ):
        compare(found)
    with pytest.raises(ValueError, match="`gram` is 'rbf'"):
        compare(found, estimator="biased", gram="rbf")


def test_the_type_of_the_model_that_runs_is_recorded(tmp_path):
    found = fingerprint(tmp_path / "a.fp")
    result = compare(found, net(), Data(), autocast="bf16")
    assert result.meta["autocast"] == "bf16"
    assert result.meta["models"]["a"]["class"] == "torch.nn.modules.container.Sequential"


def test_measures_and_chance_come_from_fingerprints_too(tmp_path):
    data, options = Data(), {"also": ["rsa_cosine", "mutual_knn"], "calibrate": 20}
    a = fingerprint(tmp_path / "a.fp")
    b = fingerprint(tmp_path / "b.fp", model=net(seed=1))
    found, expected = compare(a, b, **options), compare(net(), net(seed=1), data, **options)
    assert_close(found.null, expected.null, CKA)
    for name in options["also"]:
        assert_close(found.also[name], expected.also[name], CKA)
    many = fastcka.compare_many({"a": a, "b": b, "c": net(seed=2)}, data, ids=data.ids,
                                layers="leaves")  # fmt: skip
    assert_same(many["a", "b"], expected, CKA)
    assert_same(many["b", "c"], compare(net(seed=1), net(seed=2), data), CKA)


def test_layers_without_a_value_stay_without(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.constant, self.bad, self.good = (torch.nn.Identity() for _ in range(3))

        def forward(self, x):
            self.constant(torch.ones_like(x))
            self.bad(x * float("inf"))
            return self.good(x)

    layers = ["constant", "bad", "good"]
    with pytest.warns(fastcka.CKAWarning, match="constant|inf or NaN"):
        found = fingerprint(tmp_path / "a.fp", model=Odd(), layers=layers)
    with pytest.warns(fastcka.CKAWarning) as told:
        result = compare(found, net(), Data(), layers_b="leaves")
    assert np.isnan(result.cka[:2]).all()
    assert np.isfinite(result.cka[2]).all()
    words = " ".join(str(one.message) for one in told)
    assert "'constant' of model 'a' is constant" in words
    assert "'bad' of model 'a' holds inf or NaN" in words


def test_what_is_wrong_is_told_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.fp"
    with pytest.raises(ValueError, match="the batches do not say which: give `ids`"):
        fingerprint(path, ids=None)
    with pytest.raises(ValueError, match="`ids` names 3 images, but the batch holds 20"):
        fingerprint(path, ids=lambda batch: [1, 2, 3])
    with pytest.raises(
        ValueError, match="`dtype` must be one of 'fp32', 'fp16', 'fp64', but is 'int8'"
    ):
        fingerprint(path, dtype="int8")
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        fingerprint(tmp_path / "no" / "a.fp")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        compare(path)
    assert os.listdir(tmp_path) == []
    older = fingerprint(path)
    with pytest.raises(ValueError, match="names 3"):
        fingerprint(path, ids=lambda batch: [1, 2, 3])
    assert os.listdir(tmp_path) == ["a.fp"]
    assert_same(compare(Fingerprint(path)), compare(older))
    result = compare(older).save(tmp_path / "result")
    with pytest.raises(ValueError, match="result holds CKAResult, not a fingerprint"):
        Fingerprint(result)
    with pytest.raises(ValueError, match=r"a.fp holds a fingerprint, not CKAResult: give it to"):
        CKAResult.load(path)


def test_damage_is_told_before_a_number(tmp_path):
    whole = fingerprint(tmp_path / "a.fp").path.read_bytes()
    expected = compare(Fingerprint(tmp_path / "a.fp"))
    random, path = np.random.default_rng(0), tmp_path / "b.fp"
    for at in [*range(60), *random.integers(0, len(whole), 150)]:
        content = bytearray(whole)
        content[at] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        told = str(path)
        try:
            found = compare(Fingerprint(path))
        except ValueError as error:
            told = str(error)
        else:
            assert np.array_equal(found.cka, expected.cka, equal_nan=True)
        assert str(path) in told
    for content in (b"", whole[:-1], whole[:100], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"b.fp is damaged"):
            compare(Fingerprint(path))


def test_images_without_names_of_their_own_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="two batches have the same `ids`: every image of the data"
    ):
        fingerprint(tmp_path / "a.fp", ids=lambda batch: range(len(batch)))
    assert os.listdir(tmp_path) == []


def test_what_says_how_a_model_runs_is_refused_for_a_fingerprint(tmp_path):
    found = fingerprint(tmp_path / "a.fp")
    with pytest.raises(ValueError, match="`layers_b` does nothing: `model_b` is a fingerprint"):
        compare(net(), found, Data(), layers_b="leaves")
    with pytest.raises(ValueError, match="`input_a` does nothing: `model_a` is a fingerprint"):
        compare(found, input_a=lambda x: x)
    with pytest.raises(TypeError, match="`model` is a fingerprint already"):
        fingerprint(tmp_path / "b.fp", model=found)
    fastcka.compare(found, ids=Data().ids)  # two fingerprints need no names
    with pytest.raises(ValueError, match="`layers_a` does nothing: the layers of fingerprints are"):
        fastcka.compare(found, layers_a=["1"])
    with pytest.raises(ValueError, match="`passes` is 2, but a fingerprint holds every image once"):
        fastcka.compare(found, passes=2)


def test_what_was_told_of_a_model_is_told_again(tmp_path):
    class Sorted(Data):
        def __iter__(self):
            return ((self.x[i], torch.full((len(i),), k)) for k, i in enumerate(self.order))

    data = Sorted()
    with pytest.warns(fastcka.CKAWarning, match="sorted by class"):
        fingerprint(tmp_path / "a.fp", data, ids=lambda batch: data.ids(batch[0]), operand="bf16",
                    about={"epochs": np.int64(3)})  # fmt: skip
    with pytest.warns(fastcka.CKAWarning, match=r"^a.fp: batches are sorted by class"):
        result = compare(tmp_path / "a.fp")
    facts = result.meta["models"]["a"]
    assert facts["measured"]["operand"] == "bf16"
    assert facts["epochs"] == 3
    with pytest.raises(TypeError, match=r"`about.x` must be a string, a number"):
        fingerprint(tmp_path / "b.fp", about={"x": object()})


def test_names_of_images_become_numbers():
    assert image_numbers(torch.tensor([5, -1])).tolist() == [5, -1]
    one, other = image_numbers(["a", "b"]).tolist()
    assert one != other
    assert image_numbers(["b"]).tolist() == [other]
    assert image_numbers(np.array([7, 8])).tolist() == [7, 8]


def test_files_are_known_by_their_contents(tmp_path):
    folder = write_images(tmp_path / "images", 40, size=16)

    def batches(**options):
        return ImageBatches(folder, {"x": to_tensor}, batch_size=10, **options)

    options = {"input_a": lambda batch: batch["views"]["x"], "layers_a": "leaves"}
    model = net(size=16)
    fastcka.fingerprint(
        model, batches(), tmp_path / "a.fp", input=options["input_a"], layers="leaves"
    )
    found = fastcka.compare(model, tmp_path / "a.fp", batches(), **options)
    assert_close(found.cka, fastcka.compare(model, None, batches(), **options).cka, CKA)
    for path in folder.rglob("*.png"):
        os.rename(path, path.with_name(f"x{path.name}"))  # the same images in the same order
    fastcka.compare(model, tmp_path / "a.fp", batches(), **options)
    first = sorted(folder.rglob("*.png"))[0]
    write_images(tmp_path / "other", 1, size=16, seed=9)
    first.write_bytes(next((tmp_path / "other").rglob("*.png")).read_bytes())
    with pytest.raises(ValueError, match=r"other images .* made with batch_size 10, seed 0, files"):
        fastcka.compare(model, tmp_path / "a.fp", batches(), **options)


SMALL = ["--img-size", "32", "--batch-size", "16", "--quiet"]


def test_the_commands_write_and_compare_fingerprints(tmp_path, capsys):
    folder = str(write_images(tmp_path / "images", 40, size=40))
    usual = ["--data", folder, *SMALL]
    for model in ("test_vit", "test_resnet"):
        path = str(tmp_path / f"{model}.fp")
        assert main(["fingerprint", model, *usual, "--output", path]) == 0
    paths = [str(tmp_path / f"{model}.fp") for model in ("test_vit", "test_resnet")]
    assert main(["compare", *paths, "--output", str(tmp_path / "stored"), "--quiet"]) == 0
    both = ["compare", "test_vit", "test_resnet", *usual, "--output", str(tmp_path / "run")]
    assert main(both) == 0
    mixed = ["compare", "test_vit", paths[1], *usual, "--output", str(tmp_path / "mixed")]
    assert main(mixed) == 0
    stored, run, mixed = (
        CKAResult.load(tmp_path / name / "result.safetensors")
        for name in ("stored", "run", "mixed")
    )
    assert_close(stored.cka, run.cka, CKA)
    assert_close(mixed.cka, run.cka, CKA)
    assert stored.models == run.models == mixed.models == ("test_vit", "test_resnet")
    assert stored.meta["models"]["a"]["weights"] == "untrained, seed 0"
    capsys.readouterr()
    assert main(["fingerprint", "test_vit", *usual, "--output", paths[0]]) == 1
    assert "is there already: give another --output, or add --overwrite" in capsys.readouterr().err
    assert main(["fingerprint", "test_vit", *usual, "--output", str(tmp_path / "a.txt")]) == 1
    assert "--output must end in .fp" in capsys.readouterr().err
    again = [*mixed_arguments(paths, usual, tmp_path), "--seed", "1"]
    assert main(again) == 1
    assert "in another order; it was made with batch_size 16, seed 0" in capsys.readouterr().err


def test_fingerprints_on_the_command_line_hold_their_images(tmp_path, capsys):
    folder = str(write_images(tmp_path / "images", 20, size=40))
    path = str(tmp_path / "a.fp")
    assert main(["fingerprint", "test_vit", "--data", folder, *SMALL, "--output", path]) == 0
    capsys.readouterr()
    assert main(["compare", path, "--data", folder, "--output", str(tmp_path / "out")]) == 1
    assert "fingerprints hold their images: leave out --data" in capsys.readouterr().err
    assert main(["compare", "test_vit", path, "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told == f"fastcka: {path} holds no images: give --data, the folder it was made with\n"
    assert not (tmp_path / "out").exists()
    for chosen in (["--layers", "leaves"], ["--layers-a", "blocks.0"]):
        assert main(["compare", path, *chosen, "--output", str(tmp_path / "out")]) == 1
        assert "the layers of a fingerprint are those that were stored" in capsys.readouterr().err


def mixed_arguments(paths, usual, tmp_path):
    return ["compare", "test_vit", paths[1], *usual, "--output", str(tmp_path / "again")]


@pytest.mark.slow
def test_as_many_batches_as_a_file_may_hold_can_be_read():
    facts = {"layers": ["a" * 60] * 3, "estimator": "unbiased", "eps": [[1e-7] * 2] * 3}
    batches = [{"n": 1024, "sha256": "0" * 64}] * fingerprints.MOST
    start = fingerprints._start(facts, batches, "fp32", model={}, meta={}, warnings=())
    assert len(start) < 100_000_000 - 2_000_000


def test_more_batches_than_a_file_may_hold_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprints, "MOST", 1)
    model, data = torch.nn.Sequential(torch.nn.Linear(8, 3)), torch.randn(24, 8).split(8)
    with pytest.raises(ValueError, match="a fingerprint holds up to 1 CKA batches, and these are"):
        fastcka.fingerprint(
            model, data, tmp_path / "x.fp", ids=lambda x: [str(row.sum().item()) for row in x]
        )
