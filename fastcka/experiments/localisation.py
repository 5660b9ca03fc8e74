"""Do tokens stand for their own place in the image? E11, E12: Raghu et al. 2021, figures 9 and 10.

Also figures D.1 to D.3. CKA of each token, or of each position of a CNN's map, with each patch of
the pixels on the same grid. Tokens of a ViT with a class token are most like their own patch up to
the last block, but for those at the border, which are like others there too. Positions of a CNN are
like large parts of the image, and tokens of a ViT that averages them for its classes are less local
than those of its twin with a class token. Of a CNN whose last map is too small to have an interior
nothing is claimed, and the last layer that has one is shown beside.

Images whose patches are much alike, as drawn shapes on an even ground, show less: there a token can
be like its own patch only as far as this differs from the others.
`fastcka study --experiments E11 E12`. Costs one pass of each network over the images, in which
every token and every patch is a layer.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from fastcka.analysis.localisation import localisation, token_taps
from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Comparison, Need, NotApplicable, Side
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, Subject, Subjects
from fastcka.experiments.shared.classifier import CLASS_TOKEN, NO_TWINS, transformers, twins
from fastcka.experiments.shared.rehearsed import grid, sort_out, taken, why_not
from fastcka.report.maps import maps
from fastcka.result import CKAResult

NUMBERS = ("E11", "E12")
TITLE = "What a token is like"
FINDING = (
    "Tokens of a ViT with a class token resemble their own place of the image to the last layer; "
    "positions of a ResNet, and tokens of a ViT without class token, much less."
)
LOCAL = Claim(
    "E11",
    "in a transformer with a class token, tokens of the last block resemble their own patch of "
    "the image more than any other: share of the tokens within the border that do",
    ">=",
    0.8,
)
CNN_LESS = Claim(
    "E11",
    "more tokens of the last block resemble their own patch most in the transformer than in the "
    "CNN: difference of the shares of those within the border",
    ">=",
    0.3,
)
CNN_FLATTER = Claim(
    "E11",
    "the last block tells a token's own patch from the others more clearly in the transformer "
    "than in the CNN: difference, within the border, of CKA with it less mean CKA with the others",
    ">=",
    0.0,
)
MEAN_LESS = Claim(
    "E12",
    "more tokens of the last block resemble their own patch most with a class token than in the "
    "twin that averages its tokens: difference of the shares of those within the border",
    ">=",
    0.05,
)
MEAN_FLATTER = Claim(
    "E12",
    "the last block tells a token's own patch from the others more clearly with a class token "
    "than in the twin that averages its tokens: difference, within the border, of CKA with it "
    "less mean CKA with the others",
    ">=",
    0.0,
)
CLAIMS = (LOCAL, CNN_LESS, CNN_FLATTER, MEAN_LESS, MEAN_FLATTER)
LAST, EARLIER, INTERIOR = "last", "earlier", "the last with an interior"
SHOWN = ((0, 0), (2, 1), (4, 2), (4, 4))  # of the 7 x 7 in the paper
OF = 7
LEAST = 0.1  # of the scale: noise shall not look like more


@dataclass(frozen=True)
class Config:
    """Which blocks are looked at, beside the last.

    Attributes:
        before: further blocks, by how many are behind them; of a CNN, the first of its last
            stage instead.
    """

    before: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Layer:
    """A block whose tokens are compared with the patches of its grid."""

    name: str
    role: str
    rows: int
    columns: int


def plan(config: Config, subjects: Subjects) -> list[Need]:
    found, reasons = _layers(config, subjects)
    if not found:
        raise NotApplicable(why_not(reasons, *reasons) or "needs a network with blocks")
    return [need(subjects[name], layer) for name, layers in found.items() for layer in layers]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, CKAResult]) -> Result:
    found, reasons = _layers(config, subjects)
    arrays, summed = {}, {}
    for name, layers in found.items():
        for layer in layers:
            result, key = measured[need(subjects[name], layer)], f"{name}/{layer.name}"
            arrays[f"cka/{key}"], arrays[f"stderr/{key}"] = result.cka, result.stderr
            groups = localisation(result.cka, (layer.rows, layer.columns))
            summed[key] = {group: one._asdict() for group, one in groups.items()}
    last = {name: _Last.of(name, layers, arrays, summed) for name, layers in found.items()}
    last |= {name: _Last(why_not(reasons, name)) for name in reasons}
    facts = {
        "layers": {name: [asdict(layer) for layer in layers] for name, layers in found.items()},
        "localisation": _without_nan(summed),
        "left_out": reasons,
    }
    return Result(arrays, facts, tuple(_verdicts(subjects, last)))


def plot(result: Result) -> dict:
    """Of each network, the maps of four tokens a layer, each token framed."""
    figures = {}
    for name, layers in result.facts["layers"].items():
        rows, marked = {}, {}
        for layer in layers:
            key, sides = f"{name}/{layer['name']}", (layer["rows"], layer["columns"])
            peaks = result.facts["localisation"][key]["all"]["peaks"]
            told = layer["name"] + ("" if peaks is None else f"\n{peaks:.0%} own patch")
            for row, column in four(*sides):
                token, place = f"token {row}, {column}", row * sides[1] + column
                table = result.arrays[f"cka/{key}"][place].reshape(sides)
                rows.setdefault(told, {})[token] = table
                marked[f"{told}/{token}"] = (column - 0.5, row - 0.5, 1, 1)
        every = np.concatenate([table.ravel() for row in rows.values() for table in row.values()])
        limits = (0, max(LEAST, np.nanmax(every, initial=0)))
        figures[name] = maps(rows, label="CKA", limits=limits, marked=marked, title=name)
    return figures


def four(rows: int, columns: int) -> list[tuple[int, int]]:
    """The tokens of figure 9, of 7 x 7, in another grid: in it as far from the upper left.

    >>> four(14, 14)
    [(0, 0), (4, 2), (9, 4), (9, 9)]
    """
    places = [(r * (rows - 1) / (OF - 1), c * (columns - 1) / (OF - 1)) for r, c in SHOWN]
    return list(dict.fromkeys((round(r), round(c)) for r, c in places))


def chosen(config: Config, one: Subject) -> dict[str, str]:
    """The blocks to look at, and why: the last, some before, the last with an interior.

    Raises:
        ValueError: the tokens of the last are no grid.
    """
    blocks = one.blocks
    sides = {blocks[-1]: grid(one, blocks[-1])}
    roles = {blocks[-1]: LAST}
    if one.family == CNN:
        stage = blocks[-1].rpartition(".")[0]
        roles.setdefault(next(b for b in blocks if b.rpartition(".")[0] == stage), EARLIER)
    else:
        for back in config.before:
            if 0 < back < len(blocks):
                roles.setdefault(blocks[-1 - back], EARLIER)
    for block in reversed(blocks):
        try:
            sides[block] = grid(one, block)
        except ValueError:
            continue
        if min(sides[block].rows, sides[block].cols) >= 3:
            roles.setdefault(block, INTERIOR)
            break
    return roles


def need(one: Subject, layer: Layer) -> Comparison:
    sides = (layer.rows, layer.columns)
    taps = token_taps(one.network.module, layer.name, sides)
    return Comparison(Side(one.name, tuple(taps)), Side(one.name, pixels=sides))


def _layers(config: Config, subjects: Subjects) -> tuple[dict[str, list[Layer]], dict[str, str]]:
    """Of each network the layers that can be compared, and why there are none."""

    def attempt(one: Subject) -> list[Layer]:
        height, width = one.network.data_config["input_size"][1:]
        layers, told = [], ""
        for name, role in chosen(config, one).items():
            places = grid(one, name)
            rows, columns = places.rows, places.cols
            taps = token_taps(one.network.module, name, (rows, columns))
            if rows * columns < 2:
                told = told or f"{name} has a single position"
            elif height % rows or width % columns:
                cut = f"{rows} x {columns} do not divide {height} x {width} pixels"
                told = told or f"the positions of {name}, {cut}"
            else:
                taken(one, taps)
                layers.append(Layer(name, role, rows, columns))
        if not layers:
            raise ValueError(told)
        return layers

    return sort_out(subjects.own(), attempt)


@dataclass(frozen=True)
class _Last:
    """What claims are about: tokens of the last block that are not at the border.

    Attributes:
        why: there is no number.
        stderr: of the contrast, at most.
    """

    why: str
    peaks: float = math.nan
    contrast: float = math.nan
    stderr: float = math.nan

    @classmethod
    def of(cls, name: str, layers: list[Layer], arrays: Mapping, summed: Mapping) -> "_Last":
        last = next((layer for layer in layers if layer.role == LAST), None)
        if last is None:
            return cls(f"the last block of {name} has no grid of positions that divides the image")
        within = summed[f"{name}/{last.name}"]["interior"]
        if not within["tokens"]:
            return cls(_too_small(name, last, layers, summed))
        if math.isnan(within["peaks"]) or math.isnan(within["contrast"]):
            return cls(f"a token of {name}, or a patch, is the same in all images")
        stderr = arrays[f"stderr/{name}/{last.name}"]
        inside = _inside(last.rows, last.columns)
        # All are of the same images: errors of means are no more than means of errors.
        others = (stderr.sum(1) - stderr.diagonal()) / (len(stderr) - 1)
        error = float((stderr.diagonal() + others)[inside].mean())
        return cls("", within["peaks"], within["contrast"], error)


def _too_small(name: str, last: Layer, layers: list[Layer], summed: Mapping) -> str:
    told = f"the {last.rows} x {last.columns} positions of the last block of {name} are all border"
    for layer in layers:
        within = summed[f"{name}/{layer.name}"]["interior"]
        if layer.role == INTERIOR:
            told += (
                f"; at {layer.name}, {layer.rows} x {layer.columns}, the share is "
                f"{within['peaks']:.2f} and the contrast {within['contrast']:.2f}"
            )
    return told


def _inside(rows: int, columns: int) -> np.ndarray:
    places = np.zeros((rows, columns), dtype=bool)
    places[1:-1, 1:-1] = True
    return places.ravel()


def _verdicts(subjects: Subjects, last: Mapping[str, _Last]) -> list[Verdict]:
    rows = []
    with_token, cnns = transformers(subjects, CLASS_TOKEN), subjects.own(CNN)
    for one in with_token:
        found = last[one.name]
        peaks = None if found.why else found.peaks
        rows.append(Verdict(LOCAL, one.name, peaks, why=found.why))
        for cnn in cnns:
            rows += _differences((CNN_LESS, CNN_FLATTER), one, cnn, last)
    for one, other in twins(subjects):
        rows += _differences((MEAN_LESS, MEAN_FLATTER), one, other, last)
    told = {
        LOCAL: "needs a transformer with a class token",
        CNN_LESS: "needs a transformer with a class token and a CNN",
        CNN_FLATTER: "needs a transformer with a class token and a CNN",
        MEAN_LESS: NO_TWINS,
        MEAN_FLATTER: NO_TWINS,
    }
    answered = {row.claim for row in rows}
    rows += [Verdict(claim, "", None, why=told[claim]) for claim in CLAIMS if claim not in answered]
    return sorted(rows, key=lambda row: CLAIMS.index(row.claim))


def _differences(claims: tuple[Claim, Claim], one: Subject, less: Subject, last) -> list[Verdict]:
    """Of the share of peaks and of the contrast."""
    a, b = last[one.name], last[less.name]
    of, why = f"{one.name}, {less.name}", "; ".join(filter(None, (a.why, b.why)))
    if why:
        return [Verdict(claim, of, None, why=why) for claim in claims]
    return [
        Verdict(claims[0], of, a.peaks - b.peaks),
        Verdict(claims[1], of, a.contrast - b.contrast, math.hypot(a.stderr, b.stderr)),
    ]


def _without_nan(values):
    if isinstance(values, Mapping):
        return {name: _without_nan(value) for name, value in values.items()}
    return None if math.isnan(values) else values
