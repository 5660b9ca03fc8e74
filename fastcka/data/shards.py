"""The images in tar files: the shards of webdataset, read where they lie."""

import glob
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from fastcka.data.class_names import names_of_numbers, numbered

SUFFIX = ".tar"
# A class is a number or a name: whatever is longer is none.
LONGEST_CLASS = 256


def expand(pattern: str) -> Iterator[str]:
    """The paths that braces stand for: a range with as many digits, or a choice.

    >>> list(expand("{train,val}-{08..11}.tar"))[2:6]
    ['train-10.tar', 'train-11.tar', 'val-08.tar', 'val-09.tar']
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    before, inside, after = pattern[: braces.start()], braces[1], pattern[braces.end() :]
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        digits = len(ends[1])
        choices = (f"{one:0{digits}d}" for one in range(int(ends[1]), int(ends[2]) + 1))
    else:
        choices = iter(inside.split(","))
    for choice in choices:
        yield from expand(before + choice + after)


def shards(root: str) -> list[str]:
    """The tar files that `root` means: those in a folder, one, or several by braces."""
    if os.path.isdir(root):
        return sorted(glob.glob(os.path.join(glob.escape(root), f"*{SUFFIX}")))
    if not root.endswith(SUFFIX):
        return []
    if os.path.isfile(root):
        return [root]
    return list(expand(root)) if "{" in root else []


class Shards:
    """Images are members ending in .jpg, .jpeg or .png.

    The class is what a .cls member of the same key says, or the innermost folder of the name. The
    images are in the order of their names, as in a folder, however they are spread over the files.
    Nothing is unpacked: members are read at their place.

    Args:
        root: as it was given. paths: of the tar files.

    Attributes: as of `Folder`.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: one of them is damaged, compressed, or no tar file.

    Costs one reading of all headers, some 10,000 members a second.
    """

    def __init__(self, root: str, paths: Sequence[str]):
        self.root, self._paths = root, list(paths)
        self.facts = {"shards": len(self._paths)}
        found = []  # name, number of the shard, where it begins, its size, what a .cls file says
        for number, path in enumerate(self._paths):
            images, classes = _index(path)
            for name, (begin, size) in images.items():
                found.append((name, number, begin, size, classes.get(_key(name), "")))
        found.sort()
        labels, self.classes = _labels([(name, said) for name, *_, said in found])
        times = Counter(name for name, *_ in found)
        names = [
            name if times[name] == 1 else f"{os.path.basename(self._paths[shard])}/{name}"
            for name, shard, *_ in found
        ]
        self.files = list(zip(range(len(found)), names, labels, strict=True))
        # Arrays: workers are sent them, and there may be millions.
        self._where = np.array([one[1:4] for one in found], dtype=np.int64).reshape(-1, 3)

    def place(self, number: int) -> str:
        return self._paths[self._where[number, 0]]

    def size(self, number: int) -> int:
        return int(self._where[number, 2])

    def read(self, number: int) -> bytes:
        _, begin, size = self._where[number].tolist()
        with open(self.place(number), "rb") as file:
            file.seek(begin)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"the shard ends after {len(content)} of {size} bytes")
        return content


def _index(path: str) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Where the images of a tar file begin and their sizes, by name; and classes, by key."""
    from timm.data.readers.img_extensions import get_img_extensions

    endings, images, classes = tuple(get_img_extensions()), {}, {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                name = posixpath.normpath(member.name).lstrip("/")
                if name.lower().endswith(endings):
                    images[name] = (member.offset_data, member.size)  # a later one replaces it
                elif name.endswith(".cls"):
                    text = tar.extractfile(member).read(LONGEST_CLASS)
                    classes[_key(name)] = text.decode(errors="replace").strip()
            # What `tarfile` cannot read in the middle is the end to it.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"there is no header and no end at byte {tar.offset:,}")
    except FileNotFoundError:
        raise FileNotFoundError(f"the shard {path!r} does not exist") from None
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the shard {path!r} is damaged, compressed or no tar file: {error}"
        ) from None
    return images, classes


def _key(name: str) -> str:
    """What members of one sample share: the name up to the first dot behind its folders."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _labels(found: Sequence[tuple[str, str]]) -> tuple[list[int], list[str]]:
    """Classes as numbers, and their names: what all .cls files say, or the innermost folders."""
    if found and all(re.fullmatch(r"\d{1,18}", said) for _, said in found):
        labels = [int(said) for _, said in found]
        return labels, names_of_numbers(labels)
    return numbered([said or posixpath.basename(posixpath.dirname(name)) for name, said in found])
