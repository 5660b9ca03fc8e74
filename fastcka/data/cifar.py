"""CIFAR-10 and CIFAR-100, from the official archives as they unpack."""

import io
import os
import pickle
from dataclasses import dataclass

import numpy as np

from fastcka.options import check_choice

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Archive:
    """What an official archive unpacks to."""

    data_set: str
    file: str  # the archive
    folder: str
    splits: dict[str, tuple[str, ...]]  # the test images are the first
    names: str  # the file of the classes' names
    label: str | int  # the key of the classes in a pickle, or the byte of a record
    name_key: str = ""


_TEN = [f"data_batch_{k}" for k in range(1, 6)]
ARCHIVES = (
    Archive(
        *("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        {"test": ("test_batch",), "train": tuple(_TEN)},
        *("batches.meta", "labels", "label_names"),
    ),
    Archive(
        *("cifar100", "cifar-100-python.tar.gz", "cifar-100-python"),
        {"test": ("test",), "train": ("train",)},
        *("meta", "fine_labels", "fine_label_names"),
    ),
    Archive(
        *("cifar10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
        {"test": ("test_batch.bin",), "train": tuple(f"{name}.bin" for name in _TEN)},
        *("batches.meta.txt", 0),
    ),
    Archive(
        *("cifar100", "cifar-100-binary.tar.gz", "cifar-100-binary"),
        {"test": ("test.bin",), "train": ("train.bin",)},
        *("fine_label_names.txt", 1),
    ),
)


def find(root: str, data_set: str | None = None) -> tuple[str, Archive] | None:
    """Where `root` is or holds an unpacked archive, and which.

    Args:
        data_set: the one that is asked for, where not any will do.

    Raises:
        ValueError: both data sets are there, and none is asked for.
    """
    found = {}
    for archive in ARCHIVES:
        for folder in (root, os.path.join(root, archive.folder)):
            needed = (archive.names, archive.splits["test"][0])
            if data_set in (None, archive.data_set) and all(
                os.path.isfile(os.path.join(folder, name)) for name in needed
            ):
                found.setdefault(archive.data_set, (folder, archive))
    if len(found) > 1:
        raise ValueError(
            f"the image folder {root!r} holds both CIFAR-10 and CIFAR-100: give one of "
            f"{', '.join(repr(folder) for folder, _ in found.values())}"
        )
    return next(iter(found.values()), None)


class Cifar:
    """The images of one split; `read` gives each as a PPM file.

    Pickles can run any code, so these are read by one that makes arrays of bytes and plain values
    alone.

    Args:
        root: the unpacked folder. archive: which it is. split: "test" or "train"; None is "test".

    Attributes: as of `Folder`.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: one of them is damaged, or `split` is another.

    Costs the memory of all images of the split, 3 KB each.
    """

    def __init__(self, root: str, archive: Archive, split: str | None = None):
        split = split or "test"
        check_choice("split", split, tuple(archive.splits))
        self.root, self._archive = root, archive
        self.facts = {"data_set": archive.data_set, "split": split}
        self.classes = self._read(archive.names, self._names)
        parts = [self._read(name, self._batch) for name in archive.splits[split]]
        self._images = np.concatenate([images for images, _ in parts])
        labels = [label for _, labels in parts for label in labels]
        # The official pickles name their images, the binary files do not; both are the same.
        self.files = [(i, f"{split}/{i:05d}", label) for i, label in enumerate(labels)]

    def place(self, number: int) -> str:
        return self.root

    def size(self, number: int) -> int:
        return len(self.read(number))

    def read(self, number: int) -> bytes:
        pixels = self._images[number].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        return b"P6 %d %d 255\n" % (SIDE, SIDE) + pixels.tobytes()

    def _read(self, name: str, understand):
        path = os.path.join(self.root, name)
        again = f"unpack {self._archive.file} again"
        try:
            with open(path, "rb") as file:
                return understand(file.read())
        except FileNotFoundError:
            raise FileNotFoundError(f"CIFAR lacks the file {path!r}: {again}") from None
        # A damaged pickle raises anything, from EOFError to MemoryError.
        except Exception as error:
            raise ValueError(f"{path!r} is no file of CIFAR ({error}): {again}") from None

    def _names(self, content: bytes) -> list[str]:
        if isinstance(self._archive.label, str):
            return [_text(name) for name in _unpickled(content)[self._archive.name_key]]
        return content.decode("ascii").split()

    def _batch(self, content: bytes) -> tuple[np.ndarray, list[int]]:
        label = self._archive.label
        if isinstance(label, str):
            batch = _unpickled(content)
            images, labels = batch["data"].pixels, np.array(batch[label])
        else:
            # A record is one or two classes, coarse first, and the pixels.
            records = np.frombuffer(content, np.uint8).reshape(-1, label + 1 + PIXELS)
            images, labels = records[:, label + 1 :], records[:, label]
        if images.shape != (len(labels), PIXELS):
            raise ValueError(f"its pixels are {list(images.shape)}, and its classes {len(labels)}")
        if not np.isin(labels, range(len(self.classes))).all():
            raise ValueError(f"a class is not one of {len(self.classes)}")
        return images, labels.tolist()


class _Plain(pickle.Unpickler):
    """Makes arrays of bytes, and plain values; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str):
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): None,  # what `_reconstruct` is told to make
            ("numpy", "dtype"): _Type,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array of bytes")
        return known[module, name]


class _Type:
    """Stands for NumPy's own, which a state made up could break; bytes are the only one."""

    def __init__(self, name: bytes | str, *rest):
        if _text(name) != "u1":
            raise pickle.UnpicklingError(f"it holds values of type {_text(name)}, not bytes")

    def __setstate__(self, state) -> None:
        pass  # byte order, which bytes have none of


class _Array:
    def __init__(self, *rest):
        self.pixels = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, _, fortran, content = state
        order = "F" if fortran else "C"
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _unpickled(content: bytes) -> dict:
    """The dict of a pickle, which is of Python 2 in the archives."""
    found = _Plain(io.BytesIO(content), encoding="bytes").load()
    return {_text(key): value for key, value in found.items()}


def _text(value: bytes | str) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
