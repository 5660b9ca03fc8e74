import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from fastcka import CKAResult, CKAResults
from fastcka.report.heatmap import heatmap


def named(count, prefix="blocks."):
    return {"vit": [f"{prefix}{i}" for i in range(count)]}


def smooth(rows, columns):
    a, b = np.linspace(0, 1, rows)[:, None], np.linspace(0, 1, columns)
    return np.exp(-3 * np.abs(a - b))


def drawn(rows, columns, **options):
    values = options.pop("values", smooth(rows, columns))
    return heatmap(
        values, named(rows), {"resnet": [f"layer.{i}" for i in range(columns)]}, **options
    )


def result_of(cka, layers_a=None, layers_b=None, **changes):
    rows, columns = cka.shape
    fields = {
        "cka": cka,
        "stderr": 0.01 + 0 * cka,
        "hsic_ab": cka,
        "hsic_aa": np.full(rows, 1.0),
        "hsic_bb": np.full(columns, 2.0),
        "layers_a": layers_a or tuple(f"a{i}" for i in range(rows)),
        "layers_b": layers_b or tuple(f"b{i}" for i in range(columns)),
        "n_examples": 640,
        "n_batches": 10,
        "meta": {"estimator": "unbiased"},
    }
    return CKAResult(**fields | changes)


def texts(figure):
    """All that is written anywhere in the figure, with its extent."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def written(figure):
    return [text for text, _ in texts(figure)]


def pixels_of(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).astype(int)


def colour_bar(figure, panel=0):
    return figure.axes[panel].child_axes[0]


def test_the_first_layers_are_at_the_bottom_left():
    values = np.arange(6).reshape(2, 3) / 10
    figure = drawn(2, 3, values=values)
    (ax,) = figure.axes
    # As drawn: layer 0 of a with layer 2 of b, a third from the right, at the bottom.
    pixels = pixels_of(figure)
    box = ax.get_window_extent()
    for i, j in itertools.product(range(2), range(3)):
        x = box.x0 + (j + 0.1) * box.width / 3
        y = pixels.shape[0] - (box.y0 + (i + 0.1) * box.height / 2)
        colour = matplotlib.colormaps["viridis"](values[i, j], bytes=True)
        assert abs(pixels[int(y), int(x)] - colour).max() <= 1
    labels = [
        (axis.get_ticklabels()[0].get_text(), axis.get_ticklabels()[-1].get_text())
        for axis in (ax.yaxis, ax.xaxis)
    ]
    assert labels == [("blocks.0", "blocks.1"), ("layer.0", "layer.2")]
    lowest, highest = (label.get_window_extent().y0 for label in ax.get_yticklabels())
    assert lowest < highest


@pytest.mark.parametrize("shape", [(3, 3), (12, 16), (87, 126)], ids=str)
def test_cells_are_square_and_colours_go_from_0_to_1(shape):
    (ax,) = drawn(*shape, values=smooth(*shape) / 2 + 0.2).axes
    box = ax.get_window_extent()
    assert box.height / shape[0] == pytest.approx(box.width / shape[1], rel=1e-6)
    assert ax.images[0].get_clim() == (0, 1)


CASES = {
    "one": (1, 1, {}),
    "small": (3, 3, {"stderr": np.full((3, 3), 0.0123)}),
    "written": (12, 12, {"stderr": np.full((12, 12), 0.0004)}),
    "two panels": (12, 16, {"stderr": np.full((12, 16), 0.01), "title": "T" * 80}),
    "leaves": (87, 126, {"note": "640 examples"}),
    "dense": (63, 90, {}),
    "large": (300, 300, {}),
    "flat": (1, 126, {}),
    "tall": (126, 2, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_written_overlaps_or_is_cut_off(case):
    rows, columns, options = CASES[case]
    figure = drawn(rows, columns, **options)
    found = texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in found:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for (one, a), (other, b) in itertools.combinations(found, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        upward = min(a.y1, b.y1) - max(a.y0, b.y0)
        # Less than a pixel is the rounding of the font.
        assert across < 1 or upward < 1, f"{one!r} lies on {other!r}"
    assert max(figure.get_size_inches()) < 25


def test_model_names_do_not_overlap_where_models_have_one_layer():
    layers = named(60) | {"resnet18": ["x"], "convnext_base": ["x"], "mlp": ["x"]}
    figure = heatmap(smooth(63, 63), layers, layers)
    boxes = [box for text, box in texts(figure) if text in layers]
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("count", [1, 16, 87, 126])
def test_tick_labels_name_their_layer_with_the_first_and_the_last(count):
    (ax,) = drawn(count, 5, values=smooth(count, 5)).axes
    ticks = ax.get_yticks().astype(int)
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"blocks.{i}" for i in ticks]
    assert (ticks[0], ticks[-1]) == (0, count - 1)
    assert len(set(np.diff(ticks)[:-1])) <= 1
    assert len(ticks) == count or count > 16


def test_cells_without_value_are_hatched_and_explained():
    values = smooth(20, 20)
    assert "hatched: no value" not in written(drawn(20, 20, values=values))
    values[3] = np.nan
    figure = drawn(20, 20, values=values, note="640 examples")
    assert "640 examples\nhatched: no value" in written(figure)
    assert any(patch.get_hatch() for patch in figure.axes[0].findobj(Rectangle))
    pixels = pixels_of(figure)
    box = figure.axes[0].get_window_extent()
    row = pixels[int(pixels.shape[0] - box.y0 - 3.5 / 20 * box.height)]
    inside = row[int(box.x0) + 3 : int(box.x1) - 3, :3]
    assert (np.ptp(inside, axis=1) <= 1).all(), "grey, unlike any value"
    assert len(np.unique(inside)) > 1, "hatched"


def test_masked_cells_stay_blank_beside_those_without_value():
    values = np.ma.array(smooth(20, 20))
    values[10:, :10] = np.ma.masked
    values[3] = np.nan
    figure = drawn(20, 20, values=values)
    pixels = pixels_of(figure)
    box = figure.axes[0].get_window_extent()
    top, left = int(pixels.shape[0] - box.y1) + 3, int(box.x0) + 3
    assert (
        pixels[top : top + int(box.height / 2) - 6, left : left + int(box.width / 2) - 6] == 255
    ).all()


@pytest.mark.parametrize(
    ("low", "high", "extend"),
    [
        (0, 1, "neither"),
        (-1e-9, 1 + 1e-9, "neither"),
        (-0.02, 1, "min"),
        (0, 1.1, "max"),
        (-0.1, 1.1, "both"),
    ],
)
def test_an_arrow_marks_values_outside(low, high, extend):
    values = smooth(2, 2)
    values[0] = low, high
    figure = drawn(2, 2, values=values)
    assert figure.axes[0].images[0].colorbar.extend == extend


def test_small_matrices_have_their_values_in_the_cells_in_a_colour_that_is_read():
    values = np.array([[0.0, 0.994], [-0.004, np.nan]])
    figure = drawn(2, 2, values=values, stderr=np.array([[0.0123, 3e-16], [4e-5, np.nan]]))
    cells = {t.get_text(): t for t in figure.axes[0].texts if "±" in t.get_text()}
    assert list(cells) == ["0.00\n±0.012", "0.99\n±0.000", "0.00\n±0.000"]
    assert [cell.get_position() for cell in cells.values()] == [(0, 0), (1, 0), (0, 1)]
    assert [cell.get_color() for cell in cells.values()] == ["w", "k", "w"]
    assert not any("0." in text.get_text() for text in drawn(2, 13).axes[0].texts)


def test_standard_errors_of_large_matrices_are_a_second_panel_of_their_own_scale():
    stderr = 0.02 * smooth(12, 16)
    figure = drawn(12, 16, stderr=stderr)
    first, second = figure.axes
    np.testing.assert_array_equal(second.images[0].get_array(), stderr)
    assert second.images[0].get_clim() == (0, 0.02)
    assert colour_bar(figure, 0).get_ylabel() == "CKA"
    assert colour_bar(figure, 1).get_ylabel() == "standard error"
    assert first.get_tightbbox().x1 < second.get_tightbbox().x0


def test_names_are_written_as_they_are():
    names = {"$m$": ["a_b", "$x$"]}
    assert {"$m$", "a_b", "$x$", "$t$"} <= set(
        written(heatmap(np.eye(2), names, names, title="$t$"))
    )
    (ax,) = heatmap(np.eye(2), names, names).axes
    assert not any(label.get_parse_math() for label in ax.get_yticklabels())


def test_given_axes_are_drawn_in():
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    assert drawn(3, 4, ax=right) is figure
    assert not left.images
    assert right.images[0].get_array().shape == (3, 4)
    box = right.get_window_extent()
    assert box.height / 3 == pytest.approx(box.width / 4)
    assert tuple(figure.get_size_inches()) == (9, 4)


def test_refusals():
    with pytest.raises(ValueError, match=r"`path` must end in .png, .pdf, .svg, .* is 'x.jpeg'"):
        drawn(2, 2, path="x.jpeg")
    with pytest.raises(ValueError, match="error bars need 2 batches"):
        drawn(2, 2, stderr=np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="`ax` has room for one panel"):
        drawn(12, 16, stderr=np.ones((12, 16)), ax=Figure().subplots())


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_equal_figures_are_equal_files(tmp_path, suffix, monkeypatch):
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for year, path in enumerate(paths, 2001):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(year * 31_556_952))
        drawn(2, 3, path=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(paths[0].read_bytes()) > 1000


ISOLATED = """
import sys
import numpy as np
from fastcka.report.heatmap import heatmap
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
heatmap(np.eye(2), {"m": ["x", "y"]}, {"m": ["x", "y"]}, path=sys.argv[1])
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_drawing_changes_no_state_of_matplotlib(tmp_path):
    command = [sys.executable, "-P", "-c", ISOLATED, tmp_path / "x.svg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_result_names_its_models_and_what_was_measured():
    models = {"a": {"name": "vit_tiny"}, "b": {"name": "resnet50"}}
    result = result_of(smooth(2, 3), meta={"estimator": "biased", "models": models})
    found = written(result.plot(title="Title"))
    assert {"vit_tiny", "resnet50", "Title"} <= set(found)
    assert "640 examples in 10 batches, biased CKA" in found
    assert {"model a", "model b"} <= set(written(result_of(smooth(2, 3)).plot()))


def test_one_model_is_on_both_axes():
    own = np.ones(2)
    same = {"layers_a": ("x", "y"), "layers_b": ("x", "y"), "hsic_aa": own}
    names = written(result_of(smooth(2, 2), hsic_bb=own, **same).plot())
    assert names.count("model a") == 2
    # Two models of one architecture are not one.
    names = written(result_of(smooth(2, 2), hsic_bb=2 * own, **same).plot())
    assert "model b" in names
    meta = {"models": {"a": {"name": "vit"}}}
    assert written(result_of(smooth(2, 2), meta=meta).plot()).count("vit") == 2


def test_errors_of_a_result_are_drawn_and_need_two_batches():
    result = result_of(smooth(2, 2))
    assert any("±0.0" in text for text in written(result.plot(errors=True)))
    assert not any("±" in text for text in written(result.plot()))
    result.stderr[:] = np.nan
    with pytest.raises(ValueError, match="error bars need 2 batches"):
        result.plot(errors=True)


def test_several_models_are_one_square_with_transposed_and_blank_blocks():
    sizes = {"a": 2, "b": 3, "c": 1}
    layers = {model: tuple(f"{model}{i}" for i in range(n)) for model, n in sizes.items()}
    cka = {
        (m, n): np.random.rand(sizes[m], sizes[n])
        for m, n in [("a", "a"), ("a", "b"), ("b", "b"), ("c", "b")]
    }
    results = CKAResults({(m, n): result_of(cka[m, n], layers[m], layers[n]) for m, n in cka})
    figure = results.plot()
    image = figure.axes[0].images[-1].get_array()
    assert image.shape == (6, 6)
    order = ["".join(label.get_text()) for label in figure.axes[0].get_yticklabels()]
    assert order == ["a0", "a1", "b0", "b1", "b2", "c0"]
    np.testing.assert_array_equal(image[:2, :2], cka["a", "a"])
    np.testing.assert_array_equal(image[:2, 2:5], cka["a", "b"])
    np.testing.assert_array_equal(image[2:5, :2], cka["a", "b"].T)
    np.testing.assert_array_equal(image[5:, 2:5], cka["c", "b"])
    np.testing.assert_array_equal(image[2:5, 5:], cka["c", "b"].T)
    assert image.mask[5, :2].all()
    assert image.mask[:2, 5].all()
    assert image.mask[5, 5]
    assert image.mask.sum() == 5
    assert {line.get_ydata()[0] for line in figure.axes[0].lines if line.get_ydata()[1] != 1} == {
        1.5,
        4.5,
    }
    found = written(figure)
    assert all(found.count(model) == 2 for model in sizes)
    assert found.count("640 examples in 10 batches, unbiased CKA") == 1
    assert any("±0.0" in text for text in written(results.plot(errors=True)))
