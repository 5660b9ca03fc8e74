import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text

from fastcka.report.lines import COLOURS, Line, line_plot
from fastcka.report.saving import save_new

AXES = {"x_label": "block", "y_label": "CKA"}


def falling(count=8, start=1.0):
    return Line(np.arange(count), np.linspace(start, 0.2, count))


def names(figure):
    """What is written beside lines, with its extent."""
    figure.draw_without_rendering()
    ax = figure.axes[0]
    found = [text for text in ax.findobj(Annotation) if text.arrow_patch is not None]
    return {text.get_text(): Text.get_window_extent(text) for text in found}  # without its line


def test_names_stand_at_the_ends_and_apart_even_where_lines_end_together():
    lines = {f"network {i}": falling(start=0.5 + i / 20) for i in range(9)}
    figure = line_plot(lines, **AXES, y_limits=(0, 1))
    found = names(figure)
    assert found.keys() == lines.keys()
    box = figure.axes[0].get_window_extent()
    for one, other in itertools.combinations(found.values(), 2):
        assert not one.overlaps(other)
    assert all(extent.x0 > box.x1 for extent in found.values())


def test_names_stay_within_the_height_of_the_axes():
    lines = {f"network {i}": Line([0, 1], [1, edge]) for i, edge in enumerate([0, 0, 0, 1, 1, 1])}
    figure = line_plot(lines, **AXES, y_limits=(0, 1))
    found, box = names(figure), figure.axes[0].get_window_extent()
    assert all(box.y0 - 8 < extent.y0 < extent.y1 < box.y1 + 8 for extent in found.values())


def test_lines_are_told_apart_by_colour_and_mark_and_references_are_grey_and_dashed():
    lines = {"a": falling(), "b": falling(), "all": Line([0, 1], [1, 1], reference=True)}
    a, b, reference = line_plot(lines, **AXES).axes[0].lines
    assert [line.get_color() for line in (a, b)] == list(COLOURS[:2])
    assert a.get_marker() != b.get_marker()
    assert (reference.get_linestyle(), len(set(to_rgb(reference.get_color())))) == ("--", 1)


def test_colours_of_an_order_go_from_dark_to_light():
    lines = {f"{share} %": falling() for share in (3, 10, 30)}
    drawn = line_plot(lines, **AXES, ordered=True).axes[0].lines
    light = [np.dot((0.2126, 0.7152, 0.0722), to_rgb(line.get_color())) for line in drawn]
    assert light == sorted(light)
    assert light[-1] < 0.7  # seen on white


def test_bands_are_two_standard_errors_and_said_so():
    line = Line([0, 1], [0.5, 0.4], stderr=[0.1, 0.05])
    figure = line_plot({"a": line}, **AXES)
    (band,) = figure.axes[0].collections
    edges = band.get_paths()[0].vertices
    assert (edges[:, 1].max(), edges[:, 1].min()) == pytest.approx((0.7, 0.3))
    assert any("± 2 standard errors" in text.get_text() for text in figure.axes[0].texts)
    assert not line_plot({"a": falling()}, **AXES).axes[0].collections


def test_a_gap_is_a_gap_and_a_line_without_values_has_no_name():
    gap = Line([0, 1, 2], [0.1, np.nan, np.nan])
    found = names(line_plot({"gap": gap, "none": Line([0, 1], [np.nan] * 2)}, **AXES))
    assert list(found) == ["gap"]


def test_levels_have_names_and_counts_whole_ticks():
    figure = line_plot(
        {"a": Line([0, 1, 2], [0.1, 0.2, 0.3])}, **AXES, levels={"chance": 0.125}, whole=True
    )
    assert set(names(figure)) == {"a", "chance"}
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_equal_figures_are_equal_files(tmp_path, suffix):
    for name in "ab":
        line_plot({"$x_1": falling()}, **AXES, path=tmp_path / f"{name}.{suffix}")
    one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert one == other
    assert len(one) > 3000


def test_axes_that_are_there_are_drawn_in():
    figure = matplotlib.figure.Figure()
    ax = figure.add_subplot()
    assert line_plot({"a": falling()}, **AXES, ax=ax) is figure
    assert ax.get_ylabel() == "CKA"


def test_nothing_to_draw_and_an_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`lines` is empty"):
        line_plot({}, **AXES)
    with pytest.raises(ValueError, match=r"`path` must end in \.png, \.pdf, \.svg"):
        line_plot({"a": falling()}, **AXES, path=tmp_path / "a.gif")


def test_a_pdf_is_written_again_only_where_the_figure_is_another(tmp_path):
    path = tmp_path / "figure.pdf"

    def written(y):
        save_new(line_plot({"vit": Line([0, 1], [0, y])}, x_label="block", y_label="CKA"), path)
        return path.stat().st_mtime_ns, path.read_bytes()

    (first, one), (second, _), (third, other) = written(1), written(1), written(2)
    assert first == second < third
    assert one != other
    path.unlink()
    assert written(1)[1] == one
