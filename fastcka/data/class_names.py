"""From what the classes of images are called to their numbers."""

from collections.abc import Sequence

# Numbers beyond are ids of something; a list as long as these would fill the memory.
MOST_CLASSES = 100_000


def numbered(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Classes as the places of their names in natural order, as timm has those of folders.

    Returns:
        The class of each, and the names by number; where all names are empty, -1 and no names.

    >>> numbered(["10", "9", "10"])
    ([1, 0, 1], ['9', '10'])
    """
    from timm.utils.misc import natural_key

    known = sorted(set(names), key=natural_key)
    if known == [""]:
        return [-1] * len(names), []
    places = {name: i for i, name in enumerate(known)}
    return [places[name] for name in names], known


def names_of_numbers(labels: Sequence[int]) -> list[str]:
    """The names of classes that are known by number alone: the numbers.

    >>> names_of_numbers([2, 0])
    ['0', '1', '2']
    """
    most = max(labels, default=-1)
    return [str(i) for i in range(most + 1)] if most < MOST_CLASSES else []
