"""What is known of an object in a picture: its class and its box, from the files of ImageNet."""

import csv
import os
from xml.etree import ElementTree

Box = tuple[int, int, int, int]
# Annotations are some kilobytes.
LONGEST = 1_000_000


class _NoDocumentType(ElementTree.TreeBuilder):
    """A document type can define entities that swell without bound; annotations have none."""

    def doctype(self, name, public, system):
        raise ValueError("it defines a document type")


def read_voc(path: str) -> list[tuple[str, Box]]:
    """The class and box of each object in the XML of PASCAL VOC.

    Returns:
        Boxes as left, top, right and bottom in pixels; right and bottom are the first outside: the
        file's numbers are taken as the first and last pixel, counted from 0.

    Raises:
        ValueError: it is no such file.
    """
    try:
        if os.path.getsize(path) > LONGEST:
            raise ValueError("it is too long")
        parser = ElementTree.XMLParser(target=_NoDocumentType())
        root = ElementTree.parse(path, parser).getroot()
        found = []
        for thing in root.iter("object"):
            edges = [thing.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            if None in edges:
                raise ValueError("an object has no box")
            found.append((thing.findtext("name", ""), _box(edges)))
        return found
    except (ElementTree.ParseError, ValueError, OverflowError, LookupError) as error:
        raise ValueError(f"{path!r} is no annotation of PASCAL VOC: {error}") from None


def read_solution(path: str) -> dict[str, list[tuple[str, Box]]]:
    """The same of all images by their names without ending, as LOC_val_solution.csv has them.

    Raises:
        ValueError: it is no such file.
    """
    found = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            next(rows, None)  # the header
            for name, text in rows:
                words = text.split()
                if len(words) % 5:
                    raise ValueError(f"{name} has {len(words)} words, not 5 for each object")
                found[name] = [
                    (words[i], _box(words[i + 1 : i + 5])) for i in range(0, len(words), 5)
                ]
    except (csv.Error, ValueError, OverflowError) as error:
        raise ValueError(f"{path!r} is no table of ImageId, PredictionString: {error}") from None
    return found


def _box(edges: list[str]) -> Box:
    left, top, right, bottom = (int(float(edge)) for edge in edges)
    return left, top, right + 1, bottom + 1
