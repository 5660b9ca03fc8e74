"""One HTML page of a study: its claims, figures and provenance; opens from disk, needs no network.

Draws what it is given: `Section`s of plain data. The look is in `page.css`, the read-out of heat
maps in `page.js`, and both end up in the page.
"""

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import numpy as np

from fastcka.report.figures import Heatmap, Picture, cells, data_uri, scale

DONE = "done"
# Verdicts in the order in which they are counted, how they are marked, and in a sentence.
MARKS = {
    "holds": ("holds", ("holds", "hold")),
    "does not hold": ("fails", ("does not hold", "do not hold")),
    "not tested": ("untested", ("was not tested", "were not tested")),
}
SENSES = {">=": "≥", "<=": "≤"}
DIGITS = 4  # of values that are read out
# Pixels: of the longest side of a heat map where there is room and on a phone, and of one with many
# layers; what the name of a layer takes.
SIDE, SIDE_SMALL, SIDE_LARGE, LINE = 400, 200, 800, 17
MANY = 120  # layers
LONGEST = 22  # letters of the name of a layer beside a heat map
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A figure of a section.

    Attributes:
        name: its title.
        alt: what it shows, for those who do not see it.
        shown: the image, or the matrix.
        pdf: path of the figure for print, relative to the page; linked where it exists.
    """

    name: str
    alt: str
    shown: Picture | Heatmap
    pdf: str | None = None


@dataclass(frozen=True)
class Section:
    """What the page says of an experiment.

    Attributes:
        numbers: as "E1".
        title, question: of the experiment.
        source: where the finding stands, as "figures 1 and B.1".
        finding: what the paper found.
        notes: paragraphs on how it is measured; `words` in backticks are code.
        status: "done", "not applicable" or "failed".
        why: of those that are not done.
        claims: rows with "claim", "of", "measured", "stderr", "sense" (">=" or "<="), "threshold",
            "verdict" and "why".
        figures: in order.
        command: that measures it again.
        config, about: how the experiment was set, and where its numbers come from.
    """

    numbers: Sequence[str]
    title: str
    question: str
    source: str = ""
    finding: str = ""
    notes: Sequence[str] = ()
    status: str = DONE
    why: str = ""
    claims: Sequence[Mapping] = ()
    figures: Sequence[Figure] = ()
    command: str = ""
    config: Mapping = field(default_factory=dict)
    about: Mapping = field(default_factory=dict)


def page(
    sections: Sequence[Section],
    *,
    title: str,
    lead: str = "",
    paper: tuple[str, str] | None = None,
    networks: Sequence[Mapping] = (),
    facts: Mapping[str, str] = MappingProxyType({}),
    command: str = "",
    folder: str | os.PathLike | None = None,
) -> str:
    """The page of a study; equal input gives equal text.

    Args:
        sections: in order.
        title, lead: the heading, and what the page is about in a sentence or two.
        paper: name and address of what the findings are from.
        networks: rows of a table, with the same keys, which are its headings.
        facts: of the images and the machine, by name.
        command: that makes all of it again.
        folder: where the page will lie: figures for print that are not there are not linked.

    >>> "<title>A &amp; B</title>" in page([], title="A & B")
    True
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    shown = [
        vars(section)
        | {"id": name, "figures": [_figure(figure, folder) for figure in section.figures]}
        for name, section in zip(_ids(sections), sections, strict=True)
    ]
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            sections=shown,
            title=title,
            lead=lead,
            paper=paper,
            networks=networks,
            facts=facts,
            command=command,
            summary=_summary(sections),
            style=(HERE / "page.css").read_text(encoding="utf-8"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            done=DONE,
        )
    )


def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "separators": (",", ":"),
        "ensure_ascii": False,
        "allow_nan": False,
    }
    environment.filters |= {
        "number": number,
        "pretty": _pretty,
        "code": _code_in,
        "mark": lambda verdict: MARKS[verdict][0],
        "sense": SENSES.__getitem__,
        "link": quote,
        "breaks": breaks,
        "by_claim": by_claim,
    }
    return environment


def breaks(name: str) -> str:
    """A name that goes on in the next line behind its parts, in HTML.

    >>> print(breaks("vit_mini.shape"), breaks("MlpMixer"), breaks("0.5 of a & b"))
    vit_<wbr>mini.<wbr>shape Mlp<wbr>Mixer 0.5 of a &amp; b
    """
    from markupsafe import Markup, escape

    parts = re.split(r"(?<=[._])(?=[A-Za-z])|(?<=[a-z])(?=[A-Z])", name)
    return Markup("<wbr>").join(map(escape, parts))


def by_claim(rows: Sequence[Mapping]) -> list[tuple[str, list[Mapping]]]:
    """Each claim with its rows, in the order in which claims come first.

    >>> by_claim([{"claim": "a"}, {"claim": "b"}, {"claim": "a"}])
    [('a', [{'claim': 'a'}, {'claim': 'a'}]), ('b', [{'claim': 'b'}])]
    """
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(row["claim"], []).append(row)
    return list(groups.items())


def number(value: float | None, digits: int = 3) -> str:
    """A number as the page shows it.

    >>> number(-0.04567), number(1234.5), number(0.5), number(None)
    ('−0.0457', '1234', '0.5', '–')
    """
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def _summary(sections: Sequence[Section]) -> str:
    """How many claims hold, in a sentence."""
    count = Counter(row["verdict"] for section in sections for row in section.claims)
    total = sum(count.values())
    if not total:
        return "No claim was tested."
    parts = [
        f"{count[verdict]} {words[count[verdict] != 1]}" for verdict, (_, words) in MARKS.items()
    ]
    return f"Of {total} claim{'s' * (total > 1)}, {', '.join(parts[:-1])}, and {parts[-1]}."


def _ids(sections: Sequence[Section]) -> list[str]:
    """A name for each section that an address can hold, each once."""
    found: list[str] = []
    for section in sections:
        stem = re.sub(r"[^a-z0-9]+", "-", "-".join(section.numbers).lower()).strip("-") or "section"
        name, place = stem, 2
        while name in found:
            name, place = f"{stem}-{place}", place + 1
        found.append(name)
    return found


def _figure(figure: Figure, folder: str | os.PathLike | None) -> dict:
    pdf = figure.pdf
    if pdf is not None and folder is not None and not (Path(folder) / pdf).is_file():
        pdf = None
    facts = {"name": figure.name, "alt": figure.alt, "pdf": pdf, "large": False}
    if isinstance(figure.shown, Picture):
        return facts | {"kind": "picture", **vars(figure.shown)}
    return facts | {"kind": "map", **_map(figure.shown)}


def _map(heatmap: Heatmap) -> dict:
    """All that the template and the script need of a matrix."""
    rows, columns = heatmap.values.shape
    most = max(rows, columns)
    several = len(heatmap.models) > 1
    sides = {}
    for side, names in (("rows", heatmap.rows), ("columns", heatmap.columns)):
        layers = [layer for of in names.values() for layer in of]
        sides[side] = {
            "labels": _labels(layers, most),
            "letters": min(max(len(layer) for layer in layers), LONGEST),
            "models": _spans(names) if several else [],
        }
    data = {
        "label": heatmap.label,
        "digits": DIGITS,
        "rows": heatmap.names("rows"),
        "columns": heatmap.names("columns"),
        "values": _rounded(heatmap.values),
        "errors": None if heatmap.stderr is None else _rounded(heatmap.stderr),
    }
    finite = np.isfinite(np.ma.compressed(heatmap.values))
    colours, highest = scale(heatmap.values, heatmap.label)
    return {
        "uri": data_uri("png", cells(heatmap)),
        "height": rows,
        "width": columns,
        "label": heatmap.label,
        "side": SIDE if most <= MANY else SIDE_LARGE,
        "large": most > MANY,
        "sides": sides,
        "data": data,
        "gradient": _gradient(colours),
        "highest": highest,
        "lacks": not finite.all(),
    }


def _rounded(values: np.ndarray) -> list[list[int | None]]:
    """Whole numbers of 10**-DIGITS, which are short; None for no value."""
    scaled = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan) * 10**DIGITS
    return [[round(x) if np.isfinite(x) else None for x in row] for row in scaled.tolist()]


def _labels(names: Sequence[str], most: int) -> list[dict]:
    """Names of layers, as many as there is room for: in a wide page, in a narrow one, or both."""
    room = SIDE if most <= MANY else SIDE_LARGE
    wide = _thinned(len(names), room * len(names) / most)
    narrow = _thinned(len(names), SIDE_SMALL * len(names) / most)
    return [
        {
            "name": _shortened(names[i]),
            "place": round(100 * (i + 0.5) / len(names), 3),
            "only": "" if i in wide and i in narrow else "wide" if i in wide else "narrow",
        }
        for i in sorted(wide | narrow)
    ]


def _thinned(count: int, length: float) -> set[int]:
    """Every second, third, … of so many, and the last, where all do not fit.

    >>> sorted(_thinned(5, 1000)), sorted(_thinned(5, 3 * LINE))
    ([0, 1, 2, 3, 4], [0, 2, 4])
    """
    apart = int(np.ceil(LINE * count / max(length, LINE)))
    last = count - 1
    return {*range(0, last - apart + 1, apart), last}


def _shortened(name: str) -> str:
    """The end of a long name, which tells it from its neighbours.

    >>> _shortened("stages.2.blocks.21.downsample.conv")
    '…ks.21.downsample.conv'
    """
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _spans(names: Mapping[str, Sequence[str]]) -> list[dict]:
    """Where along an axis the layers of each model are, in per cent."""
    total = sum(len(layers) for layers in names.values())
    spans, start = [], 0
    for model, layers in names.items():
        end = start + len(layers)
        share = {"start": round(100 * start / total, 3), "end": round(100 * end / total, 3)}
        spans.append({"name": model} | share)
        start = end
    return spans


def _gradient(colours: str, steps: int = 16) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colour) for colour in colormaps[colours](np.linspace(0, 1, steps)))


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)


def _code_in(text: str) -> list[tuple[bool, str]]:
    """Parts of a text, and whether they are code.

    >>> _code_in("run `ls` now")
    [(False, 'run '), (True, 'ls'), (False, ' now')]
    """
    parts = text.split("`")
    return [(bool(place % 2), part) for place, part in enumerate(parts) if part]
