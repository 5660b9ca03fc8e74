"""ImageNet-1k, with the classes and boxes of its images, as its archives unpack."""

import os
import re
from functools import cache, cached_property

from fastcka.data.annotations import Box, read_solution, read_voc
from fastcka.data.folder import Folder

CLASS = re.compile(r"n\d{8}")
FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
# The folder of images, of Kaggle's archive and of others, in what was given.
PLACES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "")
BOXES = ("Annotations/CLS-LOC", "ILSVRC/Annotations/CLS-LOC")
TRUTH = ("ILSVRC2012_validation_ground_truth.txt", "data/ILSVRC2012_validation_ground_truth.txt",
         "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt")  # fmt: skip
# From the folder of images to that of the archive: Data/CLS-LOC/val is four deep.
ABOVE = 4


@cache
def synsets() -> dict[str, int]:
    """The classes of ImageNet-1k by WordNet id, numbered as in all networks trained on it."""
    from timm.data import ImageNetInfo

    return {name: number for number, name in enumerate(ImageNetInfo().label_names())}


@cache
def class_names() -> list[str]:
    """WordNet id and first word; the word alone would not tell two cranes apart."""
    from timm.data import ImageNetInfo

    words = ImageNetInfo().label_descriptions(as_dict=True)
    return [f"{name} {words[name].split(',')[0]}" for name in synsets()]


def find(root: str, split: str | None = None) -> tuple[str, str] | None:
    """The folder of ImageNet's images that `root` is or holds, and their split, "val" at first."""
    for place in PLACES:
        folder = os.path.join(root, place, split or "val")
        if _is_images(folder):
            return folder, split or "val"
    own = "train" if os.path.basename(os.path.abspath(root)) == "train" else "val"
    return (root, own) if split in (None, own) and _is_images(root) else None


def _is_images(folder: str) -> bool:
    """Whether it holds the images by the names of the archive, or folders of its classes alone."""
    if not os.path.isdir(folder):
        return False
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if FLAT.fullmatch(entry.name):
                return True
            if entry.is_dir():
                if not CLASS.fullmatch(entry.name) or entry.name not in synsets():
                    return False
                found = True
    return found


class ImageNet(Folder):
    """The images of one split, with classes as numbered in networks trained on ImageNet-1k.

    The class of an image is that of its folder. Images that lie flat have that of
    LOC_val_solution.csv, of ILSVRC2012_validation_ground_truth.txt and the meta.mat beside it, or
    of the annotations, whichever is found first, in the folder or up to four above.

    Args:
        root: the folder of images. split: "val" or "train".

    Attributes: as of `Folder`.

    Raises:
        ValueError: a file of classes is damaged.
        FileNotFoundError: meta.mat is missing.

    Costs a walk through the folder; 10 s more for 50,000 images where annotations alone say the
    classes.
    """

    def __init__(self, root: str, split: str):
        super().__init__(root)
        self.split, self.facts = split, {"data_set": "imagenet", "split": split}
        self.classes = class_names()
        said = self._said()
        self.files = [
            (i, name, synsets().get(said.get(_stem(name)) or _folder_class(name), -1))
            for i, name, _ in self.files
        ]

    def boxes(self, number: int) -> tuple[Box, ...]:
        """Of the objects of the image's class, in its pixels; see `ImageSet.boxes`.

        Raises:
            FileNotFoundError: there are neither annotations nor a solution.
            ValueError: they are damaged.
        """
        height, width = self.shape(number)
        # Some boxes of ImageNet reach a pixel beyond the image.
        cut = [
            (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
            for _, (left, top, right, bottom) in self._objects(self.files[number][1])
        ]
        return tuple(box for box in cut if box[0] < box[2] and box[1] < box[3])

    def shape(self, number: int) -> tuple[int, int]:
        """Height and width; the pixels are not decoded."""
        from PIL import Image

        with Image.open(os.path.join(self.root, self.files[number][1])) as image:
            return image.height, image.width

    def _objects(self, name: str) -> list[tuple[str, Box]]:
        if (path := self._annotation(name)) is not None:
            return read_voc(path)
        if self._annotations is not None:
            return []  # of the training images some have none
        if self._solution is not None:
            return self._solution.get(_stem(name), [])
        raise FileNotFoundError(
            f"there are no boxes to the images in {self.root!r}: put Annotations/CLS-LOC/"
            f"{self.split} or LOC_{self.split}_solution.csv into a folder above, from "
            "imagenet-object-localization-challenge.zip, or the .xml files of "
            "ILSVRC2012_bbox_val_v3.tgz beside the images"
        )

    def _annotation(self, name: str) -> str | None:
        beside = os.path.join(self.root, os.path.splitext(name)[0] + ".xml")
        places = [beside]
        if self._annotations is not None:
            wnid = _stem(name).partition("_")[0]  # in whose folder are those of training images
            places += [
                os.path.join(self._annotations, f"{_stem(name)}.xml"),
                os.path.join(self._annotations, wnid, f"{_stem(name)}.xml"),
            ]
        return next((path for path in places if os.path.isfile(path)), None)

    @cached_property
    def _annotations(self) -> str | None:
        return self._near(*(f"{place}/{self.split}" for place in BOXES))

    @cached_property
    def _solution(self) -> dict[str, list[tuple[str, Box]]] | None:
        path = self._near(f"LOC_{self.split}_solution.csv")
        return None if path is None else read_solution(path)

    def _said(self) -> dict[str, str]:
        """The classes of images that lie flat, by their names without ending."""
        flat = [name for _, name, _ in self.files if not _folder_class(name)]
        if not flat:
            return {}
        if self._solution is not None:
            return {stem: objects[0][0] for stem, objects in self._solution.items() if objects}
        if self.split == "val" and (path := self._near(*TRUTH)) is not None:
            return _ground_truth(path)
        annotated = {name: path for name in flat if (path := self._annotation(name)) is not None}
        objects = {_stem(name): read_voc(path) for name, path in annotated.items()}
        return {stem: found[0][0] for stem, found in objects.items() if found}

    def _near(self, *names: str) -> str | None:
        """The first of these that is in the folder of images, or else in the nearest above."""
        folder = os.path.abspath(self.root)
        for _ in range(ABOVE + 1):
            for name in names:
                if os.path.exists(path := os.path.join(folder, name)):
                    return path
            folder = os.path.dirname(folder)
        return None


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _folder_class(name: str) -> str | None:
    """The innermost folder that is a class."""
    folders = name.split(os.sep)[:-1]
    return next((part for part in reversed(folders) if part in synsets()), None)


def _ground_truth(path: str) -> dict[str, str]:
    """A class for each line, as a number of the devkit's own, which meta.mat explains."""
    from scipy.io import loadmat

    meta = os.path.join(os.path.dirname(path), "meta.mat")
    if not os.path.isfile(meta):
        raise FileNotFoundError(
            f"{path!r} numbers classes as the meta.mat of the same archive, "
            "ILSVRC2012_devkit_t12.tar.gz, explains: put it beside"
        )
    try:
        # [n, 1] of records, each field an array of its own.
        known = {
            int(one["ILSVRC2012_ID"].item()): str(one["WNID"].item())
            for one in loadmat(meta, variable_names=["synsets"])["synsets"].ravel()
        }
        with open(path, encoding="ascii") as file:
            numbers = [int(line) for line in file.read().split()]
        return {f"ILSVRC2012_val_{i:08d}": known[one] for i, one in enumerate(numbers, 1)}
    # A damaged .mat raises anything.
    except Exception as error:
        raise ValueError(
            f"{path!r} and meta.mat are not those of ILSVRC2012_devkit_t12.tar.gz: "
            f"{type(error).__name__}: {error}"
        ) from None
