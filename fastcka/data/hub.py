"""Data sets of the Hugging Face Hub: saved on disk, in its cache, or by name."""

import os

from fastcka.data.class_names import names_of_numbers, numbered

# In this order, where no split is asked for; test images of the Hub are often without classes.
EVALUATION = ("validation", "val", "valid", "test")
SAVED = ("dataset_dict.json", "state.json")  # by `save_to_disk`, of several splits and of one


def is_saved(root: str) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return any(os.path.isfile(os.path.join(root, name)) for name in SAVED)


class Hub:
    """The images of one split, in the order in which they are stored.

    Args:
        name: a folder that `save_to_disk` wrote or that holds the files of a data set, or a name of
            the Hub, which is taken from the cache and downloaded where it is not there.
        split: as the data set calls it; None is its validation images, its test images, or its
            only split.

    Attributes: as of `Folder`.

    Raises:
        FileNotFoundError: `name` is a path that does not exist.
        RuntimeError: `datasets` is not installed, or cannot load it.
        ValueError: there is no such split, or no column of images.

    Costs one reading of all files for their sizes, where they are asked for.
    """

    def __init__(self, name: str, split: str | None = None):
        data, split = _split(name, _loaded(name), split)
        import datasets

        images = [key for key, kind in data.features.items() if isinstance(kind, datasets.Image)]
        if not images:
            raise ValueError(
                f"the data set {name!r} has no column of images, but {', '.join(data.features)}: "
                "give one that has"
            )
        self._column = images[0]
        self._images = data.select_columns(images[:1]).cast_column(
            images[0], datasets.Image(decode=False)
        )
        labels, self.classes = _labels(data)
        self.root, self.facts = name, {"root": f"hfds/{name}", "split": split}
        self.files = [(i, f"{split}/{i:06d}", label) for i, label in enumerate(labels)]

    def place(self, number: int) -> str:
        return self.root

    def size(self, number: int) -> int:
        return len(self.read(number))

    def read(self, number: int) -> bytes:
        image = self._images[number][self._column]
        if image["bytes"] is not None:
            return image["bytes"]
        with open(image["path"], "rb") as file:
            return file.read()


def _loaded(name: str):
    """A data set, or several by split."""
    try:
        import datasets
    except ImportError:
        raise RuntimeError(
            f"the data set {name!r} needs the package datasets: pip install datasets"
        ) from None

    if os.path.isdir(name) and is_saved(name):
        load = datasets.load_from_disk
    elif os.path.isdir(name) or not _is_path(name):
        load = datasets.load_dataset
    else:
        raise FileNotFoundError(
            f"the data set {name!r} does not exist: give a folder written by save_to_disk, or a "
            "name of the Hub, as hfds/OWNER/NAME"
        )
    try:
        return load(name)
    # It raises its own errors and those of the network and of all formats.
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RuntimeError(
            f"the data set {name!r} cannot be loaded: {first}; give a folder written by "
            "save_to_disk, or a name of the Hub that is in the cache or can be downloaded"
        ) from None


def _is_path(name: str) -> bool:
    """Names of the Hub have one slash at most."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1


def _split(name: str, data, split: str | None):
    """The split that is asked for, and what it is called."""
    if not isinstance(data, dict):
        own = str(data.split or "all")
        data = {own: data}
    usual = [*(one for one in EVALUATION if one in data), *(data if len(data) == 1 else ())]
    split = split or next(iter(usual), None)
    if split not in data:
        asked = "none was asked for" if split is None else f"{split!r} was asked for"
        raise ValueError(
            f"the data set {name!r} has the splits {', '.join(data)}, and {asked}: give `split`, "
            "--split on the command line"
        )
    return data[split], split


def _labels(data) -> tuple[list[int], list[str]]:
    """The column `label`, or the first one of classes."""
    import datasets

    kinds = data.features
    named = [key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    column = "label" if "label" in kinds else next(iter(named), None)
    if column is None:
        return [-1] * len(data), []
    labels = data.with_format("arrow")[column].to_pylist()
    if column in named:
        names = kinds[column].names
    elif all(isinstance(label, str) for label in labels):
        return numbered(labels)
    elif all(label is None or isinstance(label, int) for label in labels):
        names = names_of_numbers([label for label in labels if label is not None])
    else:  # several classes an image, or numbers that are none
        return [-1] * len(data), []
    return [-1 if label is None else int(label) for label in labels], names
