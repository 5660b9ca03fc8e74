"""The page of a study: as a document always, as readers see it where there is a Chromium."""

import base64
import dataclasses
import importlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image

from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.report import section, write_report
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.study import DONE, FAILED, LEFT_OUT, Outcome
from fastcka.report.figures import Heatmap, cells, in_words, picture, shown
from fastcka.report.heatmap import heatmap
from fastcka.report.lines import Line, line_plot
from fastcka.report.page import Figure, Section, page
from fastcka.report.saving import save

EVIL = "<script>alert(1)</script>"
ODD = ['a "quoted" one', "R&D <b>", "it's"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
VOID = {"meta", "link", "img", "br", "wbr"}


def missing(what):
    """Who has to have all of it says so."""
    (pytest.fail if os.environ.get("FASTCKA_REQUIRE_BROWSER") else pytest.skip)(what)


def tool(name, what):
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(what)


def matrix(rows, columns):
    """Values that tell where they stand."""
    return (np.arange(rows)[:, None] * 0.01 + np.arange(columns) * 0.0001).round(4)


def layers(count, stem="blocks."):
    return [f"{stem}{i}" for i in range(count)]


def claim_rows():
    claim = Claim("E1", "CKA is higher in the one than in the other, by", ">=", 0.1)
    other = Claim("E1", "CKA is lower there, by", "<=", 0.5)
    return [
        Verdict(claim, f"vit, {EVIL}", 0.4434, 0.0123).as_row(),
        Verdict(claim, "vit, cnn", -0.05).as_row(),
        Verdict(other, "", None, why="needs a CNN & <more>").as_row(),
    ]


@pytest.fixture(scope="module")
def sections():
    within = matrix(12, 12)
    within[0, 11] = np.nan
    square = Heatmap(within, {"vit": layers(12)}, {"vit": layers(12)}, within / 100)
    oblong = Heatmap(
        matrix(3, 20), {EVIL: ODD}, {"cnn": layers(15, "layer1.0.downsample."), "b": layers(5)}
    )
    large = Heatmap(
        matrix(361, 361) / 5, {"deep": layers(361, "stages.2.blocks.1.conv")},
        {"deep": layers(361, "stages.2.blocks.1.conv")},
    )  # fmt: skip
    lines = line_plot(
        {name: Line(range(12), np.linspace(0.9, end, 12), np.full(12, 0.02))
         for name, end in (("vit", 0.7), ("cnn", 0.2), (EVIL, 0.4))},
        x_label="block", y_label="mean distance (pixels)",
    )  # fmt: skip
    return [
        Section(
            ("E1",),
            "Layers within a network",
            "How alike are all layers of one network?",
            source="Raghu et al. 2021, figures 1 and B.1",
            finding="One is uniform; the other falls into stages.",
            notes=["Costs a pass; `fastcka study --experiments E1` & more."],
            claims=claim_rows(),
            figures=[
                Figure("vit", "Heat map of the vit", square, "within/vit & more.pdf"),
                Figure(
                    f"{EVIL}, cnn", "A map that is wider than high", oblong, "within/absent.pdf"
                ),
                Figure("by block", in_words(lines), picture(lines)),
            ],
            command="fastcka study --experiments E1",
            about={"subjects": {EVIL: {"parameters": 3}}, "date": "2026-01-01"},
        ),
        Section(("E3", "E4"), "Large", "And deep ones?", figures=[Figure("deep", "Deep", large)]),
        Section(
            ("E5",), "Broken", "What broke?", finding="Nothing.", status=FAILED, why="disk <full>"
        ),
        Section(("E5",), "Elsewhere", "Where?", status=LEFT_OUT, why="needs a mixer"),
    ]


@pytest.fixture(scope="module")
def written(sections, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "within").mkdir()
    (folder / "within" / "vit & more.pdf").write_bytes(b"%PDF-")
    text = page(
        sections,
        title="Do they see alike?",
        lead="All layers & all networks.",
        paper=("Raghu et al. 2021", "https://arxiv.org/abs/2108.08810"),
        networks=[{"Network": EVIL, "Parameters": 3}, {"Network": "cnn", "Parameters": 4}],
        facts={"Images": "/data/<x>"},
        command="fastcka study --models 'a' \"b\"",
        folder=folder,
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


class Document(HTMLParser):
    """All elements in order, with their own text; tags must close in turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        element = SimpleNamespace(tag=tag, attributes=dict(attributes), text="", within=[])
        element.within = [one.tag for one in self.open]
        self.elements.append(element)
        if tag not in VOID and tag != "path":
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        if tag == "path":
            return
        assert self.open, tag
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for one in self.open:
            one.text += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            one
            for one in self.elements
            if one.tag == tag and all(one.attributes.get(k) == v for k, v in wanted.items())
        ]


@pytest.fixture(scope="module")
def document(written):
    return Document(written.read_text(encoding="utf-8"))


def test_page_has_its_parts(document):
    assert document.all("html")[0].attributes["lang"] == "en"
    assert document.all("title")[0].text == "Do they see alike?"
    for part in ("header", "nav", "main", "footer", "h1"):
        assert len(document.all(part)) == 1, part
    levels = [int(one.tag[1]) for one in document.elements if re.fullmatch(r"h[1-6]", one.tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_ids_are_unique_and_links_within_the_page_arrive(document):
    ids = [one.attributes["id"] for one in document.elements if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    assert {"e1", "e3-e4", "e5", "e5-2"} <= set(ids)
    targets = [one.attributes["href"] for one in document.all("a")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    for one in document.elements:
        assert one.attributes.get("aria-labelledby", ids[0]) in ids


def test_page_needs_no_network(document, written):
    """Nothing is loaded; links to the paper are links."""
    for one in document.elements:
        for name in ("src", "srcset", "poster", "data", "action", "background"):
            assert one.attributes.get(name, "data:").startswith("data:")
        if one.tag == "link":
            assert one.attributes["href"] == "data:,"
    text = written.read_text(encoding="utf-8")
    outside = set(re.findall(r"https?://[^\s\"'<]+", re.sub(r"data:[^\"]*", "", text)))
    assert outside == {"https://arxiv.org/abs/2108.08810"}
    assert "@import" not in text
    assert "url(" not in text


def test_every_figure_is_there_with_words_for_who_does_not_see_it(document, sections):
    images = document.all("img")
    assert len(images) == sum(len(one.figures) for one in sections)
    for image in images:
        assert image.attributes["alt"].strip()
        kind, data = re.fullmatch(
            r"data:image/([\w+]+);base64,(.*)", image.attributes["src"]
        ).groups()
        data = base64.b64decode(data, validate=True)
        if kind == "png":
            assert Image.open(io.BytesIO(data)).size == (
                int(image.attributes["width"]),
                int(image.attributes["height"]),
            )
        else:
            assert data.lstrip().startswith(b"<?xml")


def test_names_are_text_whatever_they_hold(document, written):
    scripts = document.all("script")
    assert [one.attributes.get("type") for one in scripts].count(None) == 1
    assert not [one for one in scripts if "alert" in one.text and one.attributes == {}]
    assert any(EVIL in one.text for one in document.all("td"))
    assert any(EVIL in one.text for one in document.all("th"))
    assert any(EVIL in one.text for one in document.all("h3"))
    assert any("disk <full>" in one.text for one in document.all("p"))
    for name in ODD:
        assert name in [one.text for one in document.all("span")]
    tables = [json.loads(one.text) for one in scripts if one.attributes.get("type")]
    assert tables[1]["rows"] == [f"{EVIL} {name}" for name in ODD]
    assert EVIL not in written.read_text(encoding="utf-8")


def test_matrices_are_in_the_page_to_four_digits(document):
    first, *_, last = [
        json.loads(one.text) for one in document.all("script", type="application/json")
    ]
    values = np.array(first["values"], float) / 10 ** first["digits"]
    expected = matrix(12, 12)
    expected[0, 11] = np.nan
    np.testing.assert_allclose(values, expected, atol=1e-9)
    assert first["values"][0][11] is None
    assert first["errors"][3][4] == round(expected[3, 4] * 100)
    assert last["errors"] is None
    assert len(last["rows"]) == 361


def test_a_page_of_deep_networks_stays_small(written):
    """361 x 361 layers: half a megabyte and a bit."""
    assert written.stat().st_size < 1_500_000


def test_claims_are_told_by_words_and_not_by_colour_alone(document):
    (table,) = [one for one in document.all("table") if "All claims" in one.text]
    text = " ".join(table.text.split())
    assert f"vit, {EVIL} 0.443 ± 0.012 ≥ 0.1 holds" in text
    assert "vit, cnn −0.05 ≥ 0.1 does not hold" in text
    assert "– – ≤ 0.5 not tested needs a CNN & <more>" in text
    (summary,) = document.all("p", class_="summary")
    assert summary.text == "Of 3 claims, 1 holds, 1 does not hold, and 1 was not tested."
    assert document.all("th", scope="rowgroup")[0].text.startswith("E1 CKA is")


def test_what_has_no_result_says_why(document):
    told = [" ".join(one.text.split()) for one in document.all("p", class_="status")]
    assert told == ["Failed: disk <full>", "Not applicable: needs a mixer"]


def test_figures_for_print_are_linked_where_they_exist(document):
    links = [one for one in document.all("a") if one.text == "PDF"]
    assert [one.attributes["href"] for one in links] == ["within/vit%20%26%20more.pdf"]
    assert links[0].attributes["aria-label"] == "vit for print, PDF"


def test_equal_input_gives_equal_bytes(sections):
    def drawn():
        figure = line_plot({"a": Line([0, 1], [0, 1])}, x_label="x", y_label="y")
        more = Figure("again", "again", picture(figure))
        changed = dataclasses.replace(sections[0], figures=[*sections[0].figures, more])
        return page([changed], title="T")

    assert drawn() == drawn()


def test_no_claim_and_no_section_is_a_page_too():
    document = Document(page([], title="Nothing"))
    assert document.all("p", class_="summary")[0].text == "No claim was tested."
    assert document.all("table") == []


def test_colours_are_those_of_the_figure():
    values = np.ma.masked_array([[0.0, 1.0], [np.nan, 0.5]], [[0, 0], [0, 1]])
    figure = heatmap(values, {"a": ["0", "1"]}, {"b": ["0", "1"]})
    pixels = np.asarray(Image.open(io.BytesIO(cells(figure.fastcka_heatmap))))[::-1]
    (image, *_) = [one for one in figure.axes[0].images if one.get_cmap().name == "viridis"]
    assert pixels[0].tolist() == image.to_rgba(np.array([0.0, 1.0]), bytes=True).tolist()
    assert pixels[1, 0, 3] == 0  # no value
    assert pixels[1, 1].tolist() == [255] * 4  # not asked for


def test_a_heat_map_keeps_its_matrix_and_is_told_its_errors():
    figure = heatmap(matrix(2, 3), {"a": ["0", "1"]}, {"b": ["0", "1", "2"]})
    assert shown(figure).stderr is None
    assert shown(figure, np.ones((2, 3))).stderr.sum() == 6
    assert shown(figure, np.ones((3, 2))).stderr is None
    assert in_words(figure) == (
        "Heat map of CKA: 2 layers of a upward, 3 layers of b rightward; from 0.00 to 0.01"
    )
    figure.set_label("in my words")
    assert in_words(figure) == "in my words"


def test_words_of_a_heat_map_with_gaps():
    values = np.array([[1.0, np.nan], [np.nan, 1.0]])
    names = {"a": ["0", "1"]}
    assert in_words(heatmap(values, names, names)) == (
        "Heat map of CKA: 2 layers of a upward, the same layers rightward; from 1.00 to 1.00; "
        "2 cells have no value"
    )


def test_large_drawings_become_pixels(monkeypatch):
    figure = MatplotlibFigure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    vector = picture(figure)
    monkeypatch.setattr("fastcka.report.figures.SVG_LIMIT", 10)
    pixels = picture(figure)
    assert vector.uri.startswith("data:image/svg+xml")
    assert pixels.uri.startswith("data:image/png")
    assert (vector.width, vector.height) == (pixels.width, pixels.height)
    assert 230 < vector.width < 300
    assert in_words(figure) == "a figure"


# --- from the outcomes of a study


def experiment(**changes):
    """A module of an experiment."""
    names = {
        "__doc__": "How alike? E1: Raghu et al. 2021, figure 1.\n\nVery much. Costs `nothing`.",
        "NUMBERS": ("E1",),
        "TITLE": "Layers",
        "FINDING": "They are alike.",
        "CLAIMS": (Claim("E1", "all is one", ">=", 0.5),),
        "plot": lambda result: {
            "vit": heatmap(result.arrays["cka/vit"], {"vit": ["0", "1"]}, {"vit": ["0", "1"]})
        },
    }
    return SimpleNamespace(**names | changes)


ABOUT = {
    "subjects": {
        "vit": {"parameters": 4170, "class": "ViT", "input_size": [3, 64, 64], "weights": "trained",
                "variant": None},
        "vit10": {"parameters": 4170, "variant": {"kind": "less-data", "of": "vit", "value": 10.0}},
    },
    "images": {"root": "/images", "files_used": 2048, "classes": 8},
    "sample": {"n": 64},
    "date": "2026-01-02T03:04:05+00:00",
    "command": "fastcka study",
}  # fmt: skip


def test_report_of_outcomes(tmp_path):
    claim = experiment().CLAIMS[0]
    arrays = {"cka/vit": np.eye(2), "stderr/vit": np.full((2, 2), 0.25)}
    result = Result(arrays, verdicts=(Verdict(claim, "vit", 0.7),), about=ABOUT)
    made = {
        "one": Outcome(DONE, result),
        "two": Outcome(LEFT_OUT, why="needs a CNN"),
    }
    modules = {name: experiment(NUMBERS=(name,)) for name in ("one", "two", "three")}
    (tmp_path / "one").mkdir()
    save(modules["one"].plot(result)["vit"], tmp_path / "one" / "vit.pdf")
    path = write_report(
        tmp_path / "report.html",
        modules,
        made,
        ABOUT,
        pdf=lambda name, figure: f"{name}/{figure}.pdf",
    )
    document = Document(path.read_text(encoding="utf-8"))
    told = [" ".join(one.text.split()) for one in document.all("p", class_="status")]
    assert told == ["Not applicable: needs a CNN", "Failed: it was not reached"]
    assert [one.attributes["href"] for one in document.all("a") if one.text == "PDF"] == [
        "one/vit.pdf"
    ]
    (data,) = document.all("script", type="application/json")
    assert json.loads(data.text)["errors"] == [[2500, 2500], [2500, 2500]]
    text = document.all("main")[0].text
    for words in (
        "4,170",
        "like vit, on 10 % of its images",
        "2,048, of 8 classes",
        "2026-01-02",
        "figure 1",
    ):
        assert words in text
    assert [one.text for one in document.all("code")][:2] == ["fastcka study", "nothing"]


def test_section_of_a_failure_leaves_its_claims_untested():
    made = section("one", experiment(), Outcome(FAILED, why="RuntimeError: no"))
    assert [(row["verdict"], row["why"]) for row in made.claims] == [
        ("not tested", "failed: RuntimeError: no")
    ]
    assert made.figures == ()
    assert made.question == "How alike?"
    assert made.notes == ["Very much. Costs `nothing`."]


# --- as readers see it


@pytest.fixture(scope="module")
def chromium():
    playwright = tool("playwright.sync_api", "there is no Playwright")
    if CHROMIUM is None:
        missing("there is no Chromium")
    # Its sandbox refuses to run as root.
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[1280, 400], ids=["wide", "narrow"])
def opened(request, chromium, written):
    """The page from disk; the console stays silent, and nothing else is asked for."""
    context = chromium.new_context(
        viewport={"width": request.param, "height": 800}, bypass_csp=True, reduced_motion="reduce"
    )
    told, asked = [], []
    tab = context.new_page()
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.as_uri())
    yield tab
    assert told == []
    assert {url for url in asked if not url.startswith("data:")} == {written.as_uri()}
    context.close()


def test_policy_of_the_page_lets_its_own_script_run(chromium, written):
    with chromium.new_context() as context:
        tab = context.new_page()
        told = []
        tab.on("console", lambda message: told.append(message.text))
        tab.goto(written.as_uri())
        assert "Point at a cell" in tab.locator(".readout").first.inner_text()
        tab.evaluate("document.body.append(Object.assign(document.createElement('img'), "
                     "{src: 'https://example.org/x.png'}))")  # fmt: skip
        tab.wait_for_timeout(50)
        assert any("Content Security Policy" in line for line in told)


def test_every_image_is_decoded(opened):
    broken = opened.evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => 0, () => i.alt)))"
    )
    assert not any(broken)
    assert len(broken) == 4


def read_out(tab, place):
    strong = tab.locator("figure.map").nth(place).locator(".readout b").inner_text()
    names = tab.locator("figure.map").nth(place).locator(".readout span").inner_text()
    return strong, names


def told(value, error=None):
    return f"CKA {value:.4f}" + ("" if error is None else f" ± {error:.4f}")


CELLS = {
    0: [(12, 12), [(0, 0), (0, 10), (11, 0), (11, 11), (5, 7)]],
    1: [(3, 20), [(0, 0), (0, 19), (2, 0), (2, 19), (1, 16)]],
    2: [(361, 361), [(0, 0), (0, 360), (360, 0), (360, 360), (123, 234)]],
}


@pytest.mark.parametrize("place", CELLS)
def test_cell_under_the_cursor_is_read_out(opened, place):
    (rows, columns), chosen = CELLS[place]
    plot = opened.locator(".plot").nth(place)
    deep = layers(361, "stages.2.blocks.1.conv")
    cnn = [f"cnn {one}" for one in layers(15, "layer1.0.downsample.")]
    names = {0: layers(12), 1: [f"{EVIL} {one}" for one in ODD], 2: deep}[place]
    across = {0: layers(12), 1: cnn + [f"b {one}" for one in layers(5)], 2: deep}[place]
    values = matrix(rows, columns) / (5 if place == 2 else 1)
    for row, column in chosen:
        # Within the cell, near its lower left and its upper right corner.
        for share in (0.2, 0.8):
            plot.evaluate(
                "(plot, [across, down]) => { const box = plot.getBoundingClientRect();"
                "plot.dispatchEvent(new PointerEvent('pointermove', {"
                "clientX: box.left + across * box.width, clientY: box.top + down * box.height}))}",
                [(column + share) / columns, (rows - row - share) / rows],
            )
            strong, named = read_out(opened, place)
            error = values[row, column] / 100 if place == 0 else None
            assert strong == told(values[row, column], error)
            assert named == f"{names[row]} × {across[column]}"


def test_mouse_and_touch_reach_the_read_out(opened):
    plot = opened.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] - 1.5, "y": box["height"] - 1.5})
    assert read_out(opened, 0)[0] == "CKA no value"
    plot.hover(position={"x": 1.5, "y": 1.5})
    assert read_out(opened, 0) == (told(0.11, 0.0011), "blocks.11 × blocks.0")
    where = opened.evaluate(
        "(() => { const c = document.querySelector('.cursor').getBoundingClientRect(), "
        "p = document.querySelector('.plot').getBoundingClientRect(); "
        "return [c.left - p.left, c.top - p.top, c.width - p.width / 12] })()"
    )
    np.testing.assert_allclose(where, 0, atol=0.1)


def test_arrow_keys_walk_over_the_cells(opened):
    plot = opened.locator(".plot").first
    plot.scroll_into_view_if_needed()
    plot.hover(position={"x": 1.5, "y": plot.bounding_box()["height"] - 1.5})
    plot.focus()
    assert read_out(opened, 0) == (told(0, 0), "blocks.0 × blocks.0")
    walk = {
        "ArrowUp": (1, 0), "ArrowRight": (1, 1), "ArrowDown": (0, 1), "ArrowLeft": (0, 0),
        "PageUp": (10, 0), "End": (10, 11), "PageDown": (0, 11), "Home": (0, 0),
    }  # fmt: skip
    for key, (row, column) in walk.items():
        opened.keyboard.press(key)
        assert read_out(opened, 0)[1] == f"blocks.{row} × blocks.{column}"
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowDown")
    assert read_out(opened, 0)[1] == "blocks.0 × blocks.0"


def test_page_is_readable_at_its_width(opened):
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = opened.evaluate(
        """[...document.querySelectorAll('main *, nav *, header *')].filter(one =>
            [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())
            && one.checkVisibility() && one.tagName !== 'SCRIPT'
            && parseFloat(getComputedStyle(one).fontSize) < 11.5).map(one => one.outerHTML)"""
    )
    assert small == []
    # Nothing sticks out of the text but what scrolls in its own frame.
    outside = opened.evaluate(
        """[...document.querySelectorAll('main *')].filter(one => one.checkVisibility()
            && !one.closest('.scroll, caption, thead')
            && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"""
    )
    assert outside == []


def test_names_of_layers_do_not_overlap(opened):
    overlaps = opened.evaluate(
        """[...document.querySelectorAll('.layers.rows')].flatMap(axis => {
            const boxes = [...axis.children].filter(one => one.checkVisibility())
                .map(one => one.getBoundingClientRect()).sort((a, b) => a.top - b.top);
            return boxes.slice(1).map((box, i) => boxes[i].bottom - box.top);
        })"""
    )
    assert len(overlaps) > 10
    assert max(overlaps) < 4


def test_accessible_to_axe(opened):
    axe = tool("axe_playwright_python.sync_playwright", "there is no axe")
    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = axe.Axe().run(opened).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_printed_page_shows_what_is_folded(opened):
    opened.emulate_media(media="print")
    height = opened.evaluate("document.querySelector('details pre').getBoundingClientRect().height")
    assert height > 10
    assert opened.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    opened.emulate_media(media="screen")


def test_valid_html(written):
    """By the Nu checker, whose CSS is some years old, and which cannot hash scripts."""
    jar = Path(os.environ.get("VNU_JAR", "node_modules/vnu-jar/build/dist/vnu.jar"))
    if not jar.is_file() or shutil.which("java") is None:
        missing("there is no vnu.jar (VNU_JAR says where), or no Java")
    done = subprocess.run(
        ["java", "-jar", jar, "--format", "json", "--stdout", "--exit-zero-always", written],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [one for one in json.loads(done.stdout)["messages"] if one["type"] == "error"]
    assert [one for one in found if not one["message"].startswith("CSS:")] == []
