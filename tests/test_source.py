"""What names and paths mean, and what is said where there is nothing."""

import re

import pytest
import torch
from picture_archives import cifar_python, jpeg, mnist
from test_images import Pixels

from fastcka.data import ImageBatches, ImageSet


def test_what_torchvision_keeps_is_found_by_the_names_of_timm(tmp_path, monkeypatch):
    mnist(tmp_path)
    images = ImageSet(f"torch/mnist@{tmp_path}")
    assert images.labels == [0, 1, 2, 0, 1, 2]
    assert images.classes[1] == "1 - one"
    assert [image.getpixel((3, 3)) for image, _ in images] == [(i,) * 3 for i in range(6)]
    monkeypatch.chdir(tmp_path)
    loaded = ImageBatches("torch/mnist", {"x": Pixels(28)}, split="train")
    assert sorted(i for batch in loaded for i in batch["index"].tolist()) == list(range(6))
    assert loaded.provenance()["root"] == "torch/mnist@."
    with pytest.raises(ValueError, match="`split` must be one of 'test', 'train', but is 'val'"):
        ImageSet("torch/mnist", split="val")


def test_qmnist_has_more_than_classes_of_which_the_first_column_is_it(tmp_path, monkeypatch):
    class QMNIST:
        targets = torch.tensor([[5, 0, 1], [7, 0, 2]])
        classes = ("0", "1")

    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **options: QMNIST())
    assert ImageSet("torch/qmnist").labels == [5, 7]


def test_what_else_goes_wrong_in_torchvision_is_left_as_it_is(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr("timm.data.create_dataset", fails)
    with pytest.raises(RuntimeError, match="something else"):
        ImageSet("torch/mnist")


PUT = (
    "put the folder cifar-10-batches-py there, which cifar-10-python.tar.gz unpacks to, or "
    "cifar-10-batches-bin of cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/"
    "cifar.html, or give the folder that holds it"
)
IMAGENET = (
    "put the folder ILSVRC of imagenet-object-localization-challenge.zip there, or the images of "
    "ILSVRC2012_img_val.tar as 'imagenet/val', from https://image-net.org, or give the folder that"
)
MISSING = {
    "cifar10": f"the image folder 'cifar10' does not exist: {PUT}",
    "data/CIFAR-10/": f"the image folder 'data/CIFAR-10/' does not exist: {PUT}",
    "cifar100": "the image folder 'cifar100' does not exist: put the folder cifar-100-python",
    "torch/cifar10": f"the data set 'cifar10' is not in '.': {PUT}",
    "imagenet": f"the image folder 'imagenet' does not exist: {IMAGENET}",
    "torch/imagenet@imagenet": f"the data set 'imagenet' is not in 'imagenet': {IMAGENET}",
    "torch/fashion_mnist@x": "the data set 'fashion_mnist' is not in 'x': put its folder "
    "FashionMNIST/raw there, or give the folder that holds it, as torch/fashion_mnist@DIR",
    "holidays": "the image folder 'holidays' does not exist: give a folder of .jpg, .jpeg or .png",
}


@pytest.mark.parametrize(("root", "text"), MISSING.items())
def test_what_is_not_there_says_what_to_put_where(tmp_path, monkeypatch, root, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(text)) as caught:
        ImageSet(root)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_with_the_name_of_a_data_set_says_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    text = f"'cifar10' holds no .jpg, .jpeg or .png files: {PUT}"
    with pytest.raises(ValueError, match=re.escape(text)):
        ImageSet("cifar10")


def test_names_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`torch/` must be one of 'cifar10', .*, but is 'svhn'"):
        ImageSet("torch/svhn")
    with pytest.raises(
        ValueError, match="'tfds/mnist' is a stream, which cannot be read in random order: give hf"
    ):
        ImageSet("tfds/mnist")
    jpeg(tmp_path / "a" / "1.jpg", 8, 8)
    with pytest.raises(
        ValueError,
        match=r"`split` is 'train', but '.*' is no data set that has it: give the folder",
    ):
        ImageSet(tmp_path, split="train")


def test_the_command_takes_them_and_their_splits(tmp_path, capsys):
    from fastcka.cli import main

    cifar_python(tmp_path / "c")
    usual = ["compare", "test_resnet", "--data", str(tmp_path / "c"), "--output"]
    small = ["--img-size", "32", "--batch-size", "8"]
    assert main([*usual, str(tmp_path / "1"), *small, "--split", "train"]) == 0
    assert "40 examples in 5" in capsys.readouterr().out
    assert main(["compare", "test_resnet", "--split", "train"]) != 0
    assert "--split does nothing without --data" in capsys.readouterr().err
    assert main(["compare", "test_resnet", "--data", "cifar10"]) != 0
    assert PUT in capsys.readouterr().err


# Classes, by the same names everywhere


def test_classes_of_a_folder_and_of_its_batches(tmp_path):
    for name in ("b/1.jpg", "a10/1.jpg", "a9/1.jpg"):
        jpeg(tmp_path / name, 8, 8)
    images = ImageSet(tmp_path)
    batches = ImageBatches(tmp_path, {"x": Pixels(8)}, max_images=2)
    assert images.labels == batches.labels == [1, 0, 2]
    assert images.classes == batches.classes == ["a9", "a10", "b"]
    assert images.names == ["a10/1.jpg", "a9/1.jpg", "b/1.jpg"]
    assert batches.provenance()["classes"] == 3
    for batch in batches:
        assert batch["label"].tolist() == [images.labels[i] for i in batch["index"]]


def test_images_that_lie_in_the_folder_itself_have_no_classes(tmp_path):
    for name in ("1.jpg", "2.jpg"):
        jpeg(tmp_path / name, 8, 8)
    images = ImageSet(tmp_path, transform=Pixels(4))
    assert (images.labels, images.classes) == (None, [])
    assert images[1][1] == -1
    assert images[1][0].shape == (3, 4, 4)
    (batch,) = ImageBatches(tmp_path, {"x": Pixels(8)})
    assert batch["label"].tolist() == [-1, -1]


def test_there_is_no_image_beyond_the_last(tmp_path):
    jpeg(tmp_path / "1.jpg", 8, 8)
    images = ImageSet(tmp_path)
    assert len(list(images)) == len(images) == 1
    for index in (-1, 1):
        with pytest.raises(
            IndexError, match=f"there are 1 images, and none has the number {index}"
        ):
            images[index]
