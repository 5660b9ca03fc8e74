"""Small data sets that torchvision keeps as arrays, by the names that timm has for them."""

import io

from fastcka.options import check_choice

NAMES = ("mnist", "kmnist", "fashion_mnist", "qmnist")


class TorchSet:
    """The images of one split; `read` gives each as a PPM or PGM file. Nothing is downloaded.

    Args:
        name: one of `NAMES`. root: the folder that torchvision was given.
        split: "test" or "train"; None is "test".

    Attributes: as of `Folder`.

    Raises:
        FileNotFoundError: it is not there. ValueError: `split` is another.
    """

    def __init__(self, name: str, root: str, split: str | None = None):
        from timm.data import create_dataset

        split = split or "test"
        check_choice("split", split, ("test", "train"))
        try:
            self._data = create_dataset(f"torch/{name}", root=root, split=split, download=False)
        except RuntimeError as error:
            if "not found" not in str(error):
                raise
            kind = {"fashion_mnist": "FashionMNIST"}.get(name, name.upper())
            raise FileNotFoundError(
                f"the data set {name!r} is not in {root!r}: put its folder {kind}/raw there, or "
                f"give the folder that holds it, as torch/{name}@DIR"
            ) from None
        self.root = root
        self.facts = {"root": f"torch/{name}@{root}", "data_set": name, "split": split}
        labels = self._data.targets
        if labels.ndim == 2:  # of QMNIST the class is the first column
            labels = labels[:, 0]
        self.classes = list(self._data.classes)
        self.files = [(i, f"{split}/{i:05d}", label) for i, label in enumerate(labels.tolist())]

    def place(self, number: int) -> str:
        return self.root

    def size(self, number: int) -> int:
        return len(self.read(number))

    def read(self, number: int) -> bytes:
        image, _ = self._data[number]
        file = io.BytesIO()
        image.save(file, "PPM")
        return file.getvalue()
