"""CIFAR from its official archives: the same images of either format, and no code of a pickle."""

import pickle

import numpy as np
import pytest
import torch
from picture_archives import cifar_binary, cifar_images, cifar_python, pickled_by_python_2
from test_images import Pixels

from fastcka.data import ImageBatches, ImageSet

FORMS = [
    ("cifar-10-batches-py", cifar_python, 10),
    ("cifar-100-python", cifar_python, 100),
    ("cifar-10-batches-bin", cifar_binary, 10),
    ("cifar-100-binary", cifar_binary, 100),
]


def batches(root, **options):
    return ImageBatches(root, {"x": Pixels(32)}, batch_size=5, **options)


@pytest.mark.parametrize(("name", "make", "data_set"), FORMS)
def test_images_and_classes_are_those_of_the_archive(tmp_path, name, make, data_set):
    make(tmp_path / name, data_set)
    pixels, labels = cifar_images(0)
    for root in (tmp_path, tmp_path / name):
        images = ImageSet(root)
        assert images.labels == labels
        assert [label for _, label in images] == labels
        assert len(images.classes) == data_set
        assert images.classes[3].replace("_", " ") == "class 3"
        for i, (image, _) in enumerate(images):
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1).reshape(-1), pixels[i])
    train = ImageSet(tmp_path, split="train")
    expected = [label for k in range(1, 6 if data_set == 10 else 2) for label in cifar_images(k)[1]]
    assert train.labels == expected


def test_batches_and_provenance_are_those_of_both_formats(tmp_path):
    found = []
    for name, make, data_set in FORMS[::2]:
        make(tmp_path / name, data_set)
        images = batches(tmp_path / name)
        found.append((list(images), images.provenance()))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one["file"], other["file"])
        assert torch.equal(one["label"], other["label"])
        assert torch.equal(one["views"]["x"], other["views"]["x"])
    assert found[0][1].pop("root") != found[1][1].pop("root")
    assert found[0][1] == found[1][1]
    assert (found[0][1]["data_set"], found[0][1]["split"]) == ("cifar10", "test")
    assert sorted(images.names(found[0][0][1]))[0].startswith("test/0000")


def test_workers_give_the_same_batches(tmp_path):
    cifar_python(tmp_path / "here")
    for one, other in zip(
        batches(tmp_path / "here"), batches(tmp_path / "here", workers=2), strict=True
    ):
        assert torch.equal(one["views"]["x"], other["views"]["x"])


def test_of_both_data_sets_one_must_be_given(tmp_path, monkeypatch):
    for name, make, data_set in FORMS[:2]:
        make(tmp_path / name, data_set)
    with pytest.raises(
        ValueError, match=r"holds both CIFAR-10 and CIFAR-100: give one of '.*batches-py', '.*100-p"
    ):
        ImageSet(tmp_path)
    assert len(ImageSet(f"torch/cifar100@{tmp_path}").classes) == 100
    monkeypatch.chdir(tmp_path)
    assert len(ImageSet("torch/cifar10").classes) == 10


# What may not be


class Calls:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    folder = cifar_python(tmp_path / "c")
    (folder / "test_batch").write_bytes(pickle.dumps(Calls(), 2))
    with pytest.raises(
        ValueError, match=r"test_batch' is no file of CIFAR \(it asks for __builtin__.print, which"
    ):
        ImageSet(folder)
    assert capsys.readouterr().out == ""


def other_type():
    images, labels = cifar_images(0)
    return pickled_by_python_2({b"data": images.astype(np.int16), b"labels": labels})


def objects():
    return pickle.dumps({b"data": np.array([Calls()]), b"labels": [0]}, 2)


def too_few_classes():
    images, labels = cifar_images(0)
    return pickled_by_python_2({b"data": images, b"labels": labels[1:]})


def another_class():
    images, labels = cifar_images(0)
    return pickled_by_python_2({b"data": images, b"labels": [10, *labels[1:]]})


DAMAGE = {
    other_type: "it holds values of type i2, not bytes",
    objects: "it asks for .*, which is no array of bytes",
    too_few_classes: r"its pixels are \[8, 3072\], and its classes 7",
    another_class: "a class is not one of 10",
    lambda: b"": "Ran out of input",
    lambda: other_type()[:100]: "truncated",
    lambda: pickled_by_python_2([1]): "'list' object has no attribute 'items'",
    lambda: pickled_by_python_2({b"labels": [1]}): "'data'",
}


@pytest.mark.parametrize(("content", "text"), DAMAGE.items())
def test_a_damaged_batch_is_told_with_what_to_do(tmp_path, content, text):
    folder = cifar_python(tmp_path / "c")
    (folder / "test_batch").write_bytes(content())
    again = r"test_batch' is no file of CIFAR \(.*" + text + r".*\): unpack cifar-10-python.tar.gz"
    with pytest.raises(ValueError, match=again):
        ImageSet(folder)


def test_flipped_bits_are_read_or_refused(tmp_path):
    folder = cifar_python(tmp_path / "c")
    whole, random = (folder / "test_batch").read_bytes(), np.random.default_rng(0)
    # Some of the pixels need no more testing.
    at = [i for i in range(len(whole)) if not 700 < i < len(whole) - 300]
    told = []
    for _ in range(300):
        content = bytearray(whole)
        for i in random.choice(at, 2):
            content[i] ^= 1 << int(random.integers(8))
        (folder / "test_batch").write_bytes(content)
        try:
            [image.size for image, _ in ImageSet(folder)]
        except ValueError as error:
            told.append(str(error))
    assert 50 < len(told) < 300
    assert all("unpack cifar-10-python.tar.gz again" in text for text in told)


def test_a_cut_binary_and_a_missing_batch_are_told(tmp_path):
    binary = cifar_binary(tmp_path / "b")
    (binary / "test_batch.bin").write_bytes(b"\0" * 3074)
    with pytest.raises(
        ValueError, match=r"test_batch.bin' is no file of CIFAR \(.*unpack cifar-10-binary.tar.gz"
    ):
        ImageSet(binary)
    (binary / "data_batch_3.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"CIFAR lacks the file '.*data_batch_3.bin': unpack cifar-10-bin"
    ):
        ImageSet(binary, split="train")
    with pytest.raises(ValueError, match="`split` must be one of 'test', 'train', but is 'val'"):
        ImageSet(binary, split="val")
