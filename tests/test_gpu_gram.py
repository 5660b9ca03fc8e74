"""What goes to a GPU beside the activations: tables of the launches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcka.kernels import gpu_gram
from fastcka.kernels.gpu_gram import on_device

CPU = torch.device("cpu")


def test_tables_of_the_same_layers_are_there_already():
    made = []

    def make(*values):
        made.append(values)
        return [values[0], *values[1]], [[1, 2]]

    first, second = on_device(CPU, make, 3, (4, 5)), on_device(CPU, make, 3, (4, 5))
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert on_device(CPU, make, 3, (4, 6))[0] is not first[0]
    assert made == [(3, (4, 5)), (3, (4, 6))]


@given(
    steps=st.lists(st.integers(1, 500), min_size=1, max_size=6),
    places=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    programs=st.integers(1, 40),
)
def test_every_work_is_the_sum_of_its_slots_and_of_no_other(steps, places, programs):
    layers = [(100 * layer, 7, 8, 9) for layer in range(len(steps))]
    segments, begins, works = gpu_gram._dealt(layers, tuple(steps), tuple(places), programs)
    assert begins[0] == 0
    assert begins[-1] == len(segments)
    expected = [(layer, *rows) for layer in range(len(steps)) for rows in places]
    assert [tuple(work[:3]) for work in works] == expected
    for layer, *rows, first, after in works:
        mine = segments[first:after]
        assert all(segment[:4] == list(layers[layer]) for segment in mine)
        assert all(segment[4:7] == [layer, *rows] for segment in mine)
        ends = [0, *(segment[8] for segment in mine)]
        assert [segment[7] for segment in mine] == ends[:-1]
        assert ends[-1] == steps[layer]
    assert sum(after - first for *_, first, after in works) == len(segments)
