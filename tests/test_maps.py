"""Pictures side by side: scales, frames, what is missing, and files."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from fastcka.report.maps import maps

TWO = {"a": {"one": np.array([[1.0, 2.0], [3.0, 4.0]]), "two": np.array([[0.1, np.nan]])}}


def images(figure):
    return [ax.get_images()[0] for ax in figure.axes if ax.get_images()]


def test_all_pictures_share_a_scale():
    drawn = images(maps(TWO, label="x"))
    assert len(drawn) == 2
    assert {image.norm.vmin for image in drawn} == {0}
    assert {image.norm.vmax for image in drawn} == {4}


def test_what_is_missing_is_masked():
    _, two = images(maps(TWO, label="x"))
    assert two.get_array().mask.tolist() == [[False, True]]


def test_a_logarithmic_scale_has_plain_numbers():
    figure = maps(TWO, label="x", limits=(None, None), logarithmic=True, ticks=True)
    figure.draw_without_rendering()
    image = images(figure)[0]
    assert isinstance(image.norm, LogNorm)
    assert image.norm.vmin == 0.1
    labels = [text.get_text() for text in figure.axes[-1].get_yticklabels()]
    assert {"0.1", "1"} <= set(labels)


def test_tables_count_upward_and_images_downward():
    (image, _), (table, _) = (images(maps(TWO, label="x", ticks=ticks)) for ticks in (False, True))
    assert (image.origin, table.origin) == ("upper", "lower")


def test_a_frame_stands_where_it_is_put():
    figure = maps(TWO, label="x", marked={"a/one": (0.5, 0.5, 1, 1)})
    (frame,) = figure.axes[0].patches
    assert frame.get_bbox().bounds == (0.5, 0.5, 1, 1)
    assert not figure.axes[1].patches


def test_values_beyond_the_scale_are_told():
    figure = maps(TWO, label="x", limits=(0, 2))
    assert figure.axes[-1]._colorbar.extend == "max"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_equal_figures_are_equal_files(tmp_path, suffix):
    for name in ("one", "two"):
        maps(TWO, label="x", title="t", note="n", path=tmp_path / f"{name}.{suffix}")
    one, two = (tmp_path / f"{name}.{suffix}" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`rows` is empty"):
        maps({"a": {}}, label="x")
    with pytest.raises(ValueError, match=r"`path` must end in \.png"):
        maps(TWO, label="x", path=tmp_path / "x.gif")
