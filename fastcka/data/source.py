"""What holds the images that a name or a path means, and what is said where nothing does."""

import io
import os
from typing import Protocol

from fastcka.data import cifar, hub, imagenet, torch_set
from fastcka.data.cifar import Cifar
from fastcka.data.folder import Folder
from fastcka.data.hub import Hub
from fastcka.data.imagenet import ImageNet
from fastcka.data.shards import Shards, shards
from fastcka.data.torch_set import TorchSet
from fastcka.options import check_choice

WHAT = "a folder of .jpg, .jpeg or .png files, or of .tar shards, or shards as 'x-{000..099}.tar'"
# Names that have no folder yet, as people write them, and the data sets that are meant.
KNOWN = {
    **dict.fromkeys(("cifar10", "cifar-10", "cifar_10"), "cifar10"),
    **dict.fromkeys(("cifar100", "cifar-100", "cifar_100"), "cifar100"),
    **dict.fromkeys(("imagenet", "imagenet-1k", "imagenet1k", "ilsvrc2012"), "imagenet"),
}
TORCH = ("cifar10", "cifar100", "imagenet", *torch_set.NAMES)


class Source(Protocol):
    """Images by number, with their classes; see `Folder`, which is the simplest."""

    root: str
    files: list[tuple[int, str, int]]
    classes: list[str]
    facts: dict

    def place(self, number: int) -> str: ...
    def size(self, number: int) -> int: ...
    def read(self, number: int) -> bytes: ...


def find(root: str, split: str | None = None) -> Source:
    """The images that `root` means; arguments and errors are those of `ImageBatches`."""
    prefix, _, name = root.partition("/")
    if not os.path.exists(root) and name and prefix in ("hfds", "torch"):
        source = Hub(name, split) if prefix == "hfds" else _of_torch(name, split)
    elif found := ([] if os.path.isdir(root) else shards(root)):
        source = Shards(root, found)
    elif not os.path.isdir(root):
        raise _missing(root)
    elif not os.access(root, os.R_OK | os.X_OK):
        raise PermissionError(f"the image folder {root!r} may not be read by this user")
    else:
        source = _in_folder(root, split)
    if split is not None and "split" not in source.facts:
        raise ValueError(
            f"`split` is {split!r}, but {root!r} is no data set that has it: give the folder of "
            "these images itself, without `split`"
        )
    if not source.files:
        raise ValueError(
            f"the image folder {root!r} holds no .jpg, .jpeg or .png files: "
            f"{_where(root) or f'give {WHAT}'}"
        )
    return source


def labels(source: Source) -> list[int] | None:
    """The class of every image, or None where none is known."""
    found = [label for *_, label in source.files]
    return None if all(label == -1 for label in found) else found


def decode(content: bytes):
    """A PIL RGB image; EXIF orientation is not applied, as in timm."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.convert("RGB")
    except UnidentifiedImageError:  # it names the buffer
        raise OSError("no image of a kind that Pillow knows") from None


def _in_folder(root: str, split: str | None) -> Source:
    if hub.is_saved(root):
        return Hub(root, split)
    if found := cifar.find(root):
        return Cifar(*found, split)
    if found := imagenet.find(root, split):
        return ImageNet(*found)
    source = Folder(root)
    if not source.files and (found := shards(root)):
        return Shards(root, found)
    return source


def _of_torch(name: str, split: str | None) -> Source:
    """NAME or NAME@DIR; without, the folder where it runs."""
    name, _, root = name.partition("@")
    name, root = name.lower(), root or "."
    check_choice("torch/", name, TORCH)
    if name in torch_set.NAMES:
        return TorchSet(name, root, split)
    found = imagenet.find(root, split) if name == "imagenet" else cifar.find(root, name)
    if found is None:
        raise FileNotFoundError(f"the data set {name!r} is not in {root!r}: {_put(name, root)}")
    return ImageNet(*found) if name == "imagenet" else Cifar(*found, split)


def _missing(root: str) -> Exception:
    """Why `root` is nothing to read from."""
    if os.path.exists(root):
        return ValueError(
            f"the image folder {root!r} is a file; give the folder that holds it, or {WHAT}"
        )
    if root.startswith(("hfids/", "tfds/", "wds/")):
        return ValueError(
            f"{root!r} is a stream, which cannot be read in random order: give hfds/NAME, or {WHAT}"
        )
    return FileNotFoundError(
        f"the image folder {root!r} does not exist: {_where(root) or f'give {WHAT}'}"
    )


def _where(root: str) -> str | None:
    """What to put there, where the name tells what it should be."""
    name = os.path.basename(root.rstrip("/"))
    known = KNOWN.get(name.lower())
    return known and _put(known, root)


def _put(data_set: str, root: str) -> str:
    """What to put into a folder for a data set to be found there."""
    if data_set == "imagenet":
        return (
            f"put the folder ILSVRC of imagenet-object-localization-challenge.zip there, or the "
            f"images of ILSVRC2012_img_val.tar as {os.path.join(root, 'val')!r}, from "
            "https://image-net.org, or give the folder that holds them"
        )
    python, binary = (one for one in cifar.ARCHIVES if one.data_set == data_set)
    return (
        f"put the folder {python.folder} there, which {python.file} unpacks to, or {binary.folder} "
        f"of {binary.file}, from {cifar.PAGE}, or give the folder that holds it"
    )
