"""The images under a folder."""

import os


class Folder:
    """Images are files ending in .jpg, .jpeg or .png, at any depth; their folders are classes.

    Attributes:
        root: the folder.
        files: number, name within it, and class of every image, sorted by name; -1 is no class.
        classes: what they are called, by number.
        facts: what a result says of it beside that.
    """

    def __init__(self, root: str):
        from timm.data.readers.reader_image_folder import find_images_and_targets

        self.root, self.facts = root, {}
        # Sorted here: timm's natural order leaves open which of 1.png and 01.png comes first.
        found, numbers = find_images_and_targets(root, sort=False)
        named = sorted((os.path.relpath(path, root), label) for path, label in found)
        self.classes = sorted(numbers, key=numbers.get)
        if self.classes == [""]:  # all lie in the folder itself, which tells nothing of them
            self.classes, named = [], [(name, -1) for name, _ in named]
        self.files = [(i, name, label) for i, (name, label) in enumerate(named)]

    def place(self, number: int) -> str:
        """What holds an image."""
        return self.root

    def size(self, number: int) -> int:
        """Bytes of an image."""
        return os.path.getsize(os.path.join(self.root, self.files[number][1]))

    def read(self, number: int) -> bytes:
        """The content of an image."""
        with open(os.path.join(self.root, self.files[number][1]), "rb") as file:
            return file.read()
