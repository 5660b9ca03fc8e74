"""How the Gram products of many layers are dealt to the programs of one GPU launch.

A Gram matrix is small and its sum over features long, so a launch takes many layers at once, and
every program the same length of them: layers are laid end to end and cut into equal runs
(stream-K). What lies within one layer's tile is a segment: a program adds it up alone and leaves it
in a slot of its own, and the slots of a tile are summed in their order. All of it follows from the
shapes and the number of programs, so the same layers give the same bits.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Products added up in float32 before the sum is rounded to memory. Tensor cores cut off what they
# shift out: a relative error that grows with the length, 1.1e-5 for this one.
CHUNK = 8192


class Tile(NamedTuple):
    """Two blocks of rows, and which of their products are taken.

    square: the first with itself. triangle: each with itself, and the second with the first. pair:
    the first with the second alone.
    """

    kind: str
    rows: int  # of the first block
    columns: int  # of the second

    @property
    def products(self) -> int:
        """Entries of all its products: the length of a slot."""
        if self.kind == "square":
            return self.rows**2
        return self.rows * self.columns * (3 if self.kind == "triangle" else 1)


class Segment(NamedTuple):
    """A run of one layer's features in one tile: steps start to stop, into a slot of its own."""

    work: int  # layer · tiles + tile
    start: int
    stop: int


SMALL, MIDDLE = Tile("square", 64, 64), Tile("square", 128, 128)
TRIANGLE = Tile("triangle", 128, 128)
WIDE, PAIR, SLIM = (Tile("pair", 128, columns) for columns in (256, 128, 64))


def covering(n: int, triangles: bool, pair: Tile) -> list[tuple[Tile, list[tuple[int, int]]]]:
    """Tiles that hold the lower triangle of an n × n matrix: where their two blocks of rows begin.

    Args:
        triangles: whether 256 rows fit one program; else blocks of 128 rows meet two by two.
        pair: the tile below the diagonal.

    >>> covering(200, True, PAIR)
    [(Tile(kind='triangle', rows=128, columns=128), [(0, 128)])]
    >>> covering(200, False, PAIR)
    [(Tile(kind='square', rows=128, columns=128), [(0, 0), (128, 128)]), \
(Tile(kind='pair', rows=128, columns=128), [(128, 0)])]
    """
    if n <= SMALL.rows:
        return [(SMALL, [(0, 0)])]
    if n <= MIDDLE.rows or not triangles:
        side = MIDDLE.rows
        found = [(MIDDLE, [(row, row) for row in range(0, n, side)])]
    else:
        side = 2 * TRIANGLE.rows
        found = [(TRIANGLE, [(row, row + TRIANGLE.rows) for row in range(0, n, side)])]
    below = [
        (row, column)
        for column in range(0, n, pair.columns)
        for row in range(column // side * side + side, n, pair.rows)
    ]
    return found + ([(pair, below)] if below else [])


def deal(steps: Sequence[int], programs: int) -> tuple[list[Segment], list[int]]:
    """Cut the steps of all works, end to end, into runs of equal length, one a program.

    Args:
        steps: of each work, 1 or more.
        programs: that run at once.

    Returns:
        The segments in order, and where each program's begin: one number more than programs. No
        program has more than one step more than another, and there are fewer segments than works
        and programs together.

    >>> deal([3, 2], 2)
    ([Segment(work=0, start=0, stop=3), Segment(work=1, start=0, stop=2)], [0, 1, 2])
    >>> deal([5], 2)[0]
    [Segment(work=0, start=0, stop=3), Segment(work=0, start=3, stop=5)]
    """
    total = sum(steps)
    programs = min(programs, total)
    segments, begins = [], [0]
    work, done = 0, 0
    for program in range(programs):
        left = -(-total * (program + 1) // programs) - -(-total * program // programs)
        while left:
            taken = min(left, steps[work] - done)
            segments.append(Segment(work, done, done + taken))
            left, done = left - taken, done + taken
            if done == steps[work]:
                work, done = work + 1, 0
        begins.append(len(segments))
    return segments, begins
