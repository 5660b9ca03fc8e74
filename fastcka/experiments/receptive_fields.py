"""Which pixels does a layer depend on? E6 and E7: Raghu et al. 2021, figures 6 and C.1 to C.4.

Effective receptive fields: how much the middle cell of a layer changes with each pixel, averaged
over channels and images. On the main path of a CNN they grow slowly with depth; those of a ViT's
low layers are larger, and up to the last layer the patch in the middle counts more than any other.
Before it is added to the main path, E7, what attention gives depends far less on that patch: skip
connections are what keeps tokens in their place. `fastcka study --experiments E6`.

Two numbers say how a field spreads: the share of it that lies in the patch in the middle, and the
distance from the middle within which half of it lies, as a share of the image's side. The patch of
a CNN is as large as the first transformer's. Costs 16 backward passes of a few images, 32 unless
told otherwise, from each layer of each network.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd

import numpy as np
from torch import nn

from fastcka.analysis.centre_cell import centre_cell
from fastcka.analysis.field_maps import patch_masses
from fastcka.analysis.observer import Observer, Taps
from fastcka.analysis.receptive_field import ReceptiveFields
from fastcka.analysis.sublayers import after_residual, before_residual
from fastcka.capture import Tap
from fastcka.capture.modules import named
from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Field, Need, NotApplicable, Watch
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.subjects import CNN, TRANSFORMER, Subject, Subjects
from fastcka.experiments.shared.depth import shares
from fastcka.experiments.shared.rehearsed import probed, sort_out, why_not
from fastcka.report.lines import Line, line_plot
from fastcka.report.maps import maps

NUMBERS = ("E6", "E7")
TITLE = "Effective receptive fields"
FINDING = (
    "Fields of a ViT's low layers are larger than a ResNet's, which grow slowly; the patch in the "
    "middle counts most in all layers of a ViT. Before the addition, attention depends far less on "
    "that patch: skip connections keep tokens in their place."
)
GROWS = Claim(
    "E6",
    "the CNN's receptive field grows from each layer of the main path to the next: least growth "
    "of the radius that holds half of it, as a share of the image's side",
    ">=",
    0.0,
)
LARGER = Claim(
    "E6",
    "in the lowest third of the layers the receptive field is larger in the transformer than in "
    "the CNN: difference of the radii that hold half of it, as a share of the image's side",
    ">=",
    0.0,
)
CENTRE_LARGEST = Claim(
    "E6",
    "in every layer of the transformer's main path the patch in the middle holds more of the "
    "receptive field than any other: its share over that of the next, the least of all layers",
    ">=",
    1.0,
)
ATTENTION_LOOKS_AWAY = Claim(
    "E7",
    "in the upper half of the blocks the patch in the middle holds less of the receptive field of "
    "attention itself than of the main path it is added to: least difference of the shares",
    ">=",
    0.0,
)
CLAIMS = (GROWS, LARGER, CENTRE_LARGEST, ATTENTION_LOOKS_AWAY)
NO_FIELD = "there are too few layers, or one of them depends on no pixel"
NO_OTHERS = "one of its layers depends on no pixel, or on none outside the patch in the middle"
CELLS = 8  # patches a side where no network says
SHOWN = 5  # layers whose fields are drawn
AFTER, BEFORE = "after", "before"
WORDS = {
    "radius": "radius of half of the field (share of the side)",
    "centre": "share of the field in the middle patch",
}


@dataclass(frozen=True)
class Config:
    """Nothing to choose: all additions of skip connections and branches."""


def plan(config: Config, subjects: Subjects) -> list[Need]:
    usable, left_out = sort_out(subjects.own(), _check)
    if not usable:
        raise NotApplicable(why_not(left_out, *left_out))
    return [_field(subjects[name], subjects) for name in usable]


def finish(config: Config, subjects: Subjects, measured: Mapping[Need, ReceptiveFields]) -> Result:
    usable, left_out = sort_out(subjects.own(), _check)
    arrays, facts = {}, {"layers": {}, "patch": {}, "left_out": left_out}
    fields: dict[str, _Fields] = {}
    for one in map(subjects.get, usable):
        found = fields[one.name] = _Fields(one, measured[_field(one, subjects)])
        facts["patch"][one.name] = found.patch
        facts["layers"][one.name] = {}
        for part, layers in found.layers.items():
            facts["layers"][one.name][part] = layers
            key = f"{part}/{one.name}"
            radius, centre = found.radii[part], found.centre[part]
            arrays |= {
                f"maps/{key}": found.maps[part],
                f"radius/{key}": radius.mean(1),
                f"radius_stderr/{key}": _error(radius),
                f"centre/{key}": centre.mean(1),
                f"centre_stderr/{key}": _error(centre),
            }
    return Result(arrays, facts, tuple(_verdicts(subjects, fields, left_out)))


def plot(result: Result) -> dict:
    """Fields of a few layers of every network; how they spread over depth, after and before."""
    figures, layers = {}, result.facts["layers"]
    for name, parts in layers.items():
        figures[name] = _pictures(result, name, parts)
    for value, words in WORDS.items():
        lines = {name: Line(*_by_depth(result, value, AFTER, name)) for name in layers}
        figures[f"{value}, main path"] = line_plot(
            lines,
            x_label="depth (share of the layers)",
            y_label=words,
            title="after each addition",
            x_limits=(0, 1),
            y_limits=(0, None),
        )
    for name, parts in layers.items():
        lines = {}
        for part in parts:
            x, y, error = _by_depth(result, "centre", part, name)
            for branch, rows in _branches(parts).items():
                rows = rows if part == BEFORE or branch else slice(None)
                label = f"{branch}, {part}" if branch else part
                lines[label] = Line(x[rows], y[rows], error[rows])
        figures[f"{name}, before and after"] = line_plot(
            lines,
            x_label="depth (share of the layers)",
            y_label=WORDS["centre"],
            title=f"{name}, before and after each addition",
            x_limits=(0, 1),
            y_limits=(0, None),
        )
    return figures


class _Fields:
    """What was measured of a network, after and before the addition, in order of depth."""

    def __init__(self, one: Subject, measured: ReceptiveFields):
        module = one.network.module
        side = max(measured.maps.shape[-2:])
        place = {layer: number for number, layer in enumerate(measured.layers)}
        taps = {AFTER: after_residual(module), BEFORE: before_residual(module)}
        self.patch = measured.patch
        self.layers = {part: [_label(tap) for tap in some] for part, some in taps.items()}
        rows = {part: [place[layer] for layer in some] for part, some in self.layers.items()}
        self.maps = {part: measured.maps.numpy()[some] for part, some in rows.items()}
        self.radii = {part: measured.radii.numpy()[some] / side for part, some in rows.items()}
        self.centre = {part: measured.centre_shares.numpy()[some] for part, some in rows.items()}
        self.cells = {
            part: patch_masses(measured.maps[some], self.patch).numpy()
            for part, some in rows.items()
        }


def _verdicts(
    subjects: Subjects, fields: Mapping[str, _Fields], left_out: Mapping[str, str]
) -> Iterator[Verdict]:
    transformers, cnns = subjects.own(TRANSFORMER), subjects.own(CNN)
    pairs = [(one, cnn) for one in transformers for cnn in cnns]
    for needed, groups, judged in (
        ("a CNN", [(cnn,) for cnn in cnns], {GROWS: _least_step}),
        ("a transformer and a CNN", pairs, {LARGER: _larger}),
        (
            "a transformer",
            [(one,) for one in transformers],
            {CENTRE_LARGEST: _least_of_middle, ATTENTION_LOOKS_AWAY: _least_closer},
        ),
    ):
        for claim, judge in judged.items():
            if not groups:
                yield Verdict(claim, "", None, why=f"needs {needed}")
            for group in groups:
                names = [one.name for one in group]
                why = why_not(left_out, *names)
                numbers = (None,) if why else judge(*(fields[name] for name in names))
                if not why and not np.isfinite(numbers[0]):
                    why = NO_OTHERS if claim == CENTRE_LARGEST else NO_FIELD
                yield Verdict(claim, ", ".join(names), *numbers, why=why)


def _least_step(cnn: _Fields) -> tuple[float, float]:
    """The least growth of the radius from one layer of the main path to the next."""
    return _least(np.diff(cnn.radii[AFTER], axis=0))


def _larger(one: _Fields, cnn: _Fields) -> tuple[float, float]:
    """The radius in the lowest third of the layers less that in the CNN, of the same images."""
    return _least((_low(one) - _low(cnn))[None])


def _least_of_middle(one: _Fields) -> tuple[float]:
    return (float(centre_to_others(one.cells[AFTER]).min()),)


def _least_closer(one: _Fields) -> tuple[float, float]:
    """By how much less the middle patch holds of attention before the addition, upper half."""
    closer = (one.centre[AFTER] - one.centre[BEFORE])[::2]  # attention and MLP take turns
    return _least(closer[len(closer) // 2 :])


def _least(values: np.ndarray) -> tuple[float, float]:
    """The least mean over images of rows [rows, images], with its standard error."""
    if not len(values):
        return np.nan, np.nan
    row = int(np.argmin(values.mean(1)))
    return float(values[row].mean()), float(_error(values)[row])


def centre_to_others(cells: np.ndarray) -> np.ndarray:
    """How many times as much the middle patch holds as the largest other; NaN where none has any.

    >>> centre_to_others(np.array([[[0.1, 0.1, 0.1], [0.2, 0.4, 0.0], [0.1, 0.0, 0.0]]]))
    array([2.])
    """
    others = cells.copy()
    middle = (..., cells.shape[-2] // 2, cells.shape[-1] // 2)
    others[middle] = -np.inf
    most = others.max((-2, -1))
    return cells[middle] / np.where(most > 0, most, np.nan)


def _low(found: _Fields) -> np.ndarray:
    """Of each image the mean radius in the lowest third of the main path."""
    radii = found.radii[AFTER]
    return radii[: max(1, len(radii) // 3)].mean(0)


def _error(values: np.ndarray) -> np.ndarray:
    """Standard errors of means over images, [layers, images]; NaN of a single image."""
    count = values.shape[1]
    return values.std(1, ddof=1) / count**0.5 if count > 1 else np.full(len(values), np.nan)


def _label(tap: Tap) -> str:
    """The name of a layer, as the measurement gives it."""
    return tap.pattern + (f"#{tap.call}" if (tap.call or 1) > 1 else "") + tap.suffix


def _layers(one: Subject) -> tuple[Tap, ...]:
    """Raises ValueError where a network has no known additions."""
    module = one.network.module
    return tuple(dict.fromkeys([*after_residual(module), *before_residual(module)]))


def _field(one: Subject, subjects: Subjects) -> Field:
    return Field(one.name, _layers(one), _patch(one, subjects))


def _check(one: Subject) -> None:
    """Raises ValueError where its layers have no middle, and says why."""
    image = tuple(one.network.data_config["input_size"][1:])

    def centres(module: nn.Module) -> Observer:
        modules, taps = named(module), _layers(one)
        patterns = {_label(tap): tap.pattern for tap in taps}

        def centre(layer, x):
            return centre_cell(x, patterns[layer], modules, image).values

        return Taps(list(taps), centre)

    probed(one, Watch(one.name, "middles of layers", centres))


def _patch(one: Subject, subjects: Subjects) -> int:
    """The side of its patches; of a CNN, as large in the image as the first transformer's."""
    height, width = one.network.data_config["input_size"][1:]
    side, both = min(height, width), gcd(height, width)
    own = _own_patch(one)
    others = (_cells(other) for other in subjects.own(TRANSFORMER))
    cells = next((count for count in others if count), CELLS)
    wanted = own or side / cells
    divisors = [size for size in range(1, both + 1) if both % size == 0]
    return min(divisors, key=lambda size: (abs(size - wanted), size))


def _own_patch(one: Subject) -> int:
    for part in ("patch_embed", "stem"):
        size = getattr(one.modules.get(part), "patch_size", None)
        size = size[0] if isinstance(size, tuple | list) else size
        if isinstance(size, int):
            return size
    return 0


def _cells(one: Subject) -> int:
    """Patches a side; 0 where the network does not say."""
    patch = _own_patch(one)
    return min(one.network.data_config["input_size"][1:]) // patch if patch else 0


def _by_depth(result: Result, value: str, part: str, name: str):
    y, error = (result.arrays[f"{key}/{part}/{name}"] for key in (value, f"{value}_stderr"))
    return shares(len(y)), y, error


def _branches(parts: Mapping[str, list[str]]) -> dict[str, slice]:
    """The additions by branch: of transformers and mixers two a block, which take turns."""
    if not _paired(parts):
        return {"": slice(None)}
    tokens = any("#" in layer for layer in parts[BEFORE])  # calls of a module that both share
    return {"MLP of tokens" if tokens else "attention": slice(0, None, 2), "MLP": slice(1, None, 2)}


def _paired(parts: Mapping[str, list[str]]) -> bool:
    """Whether every layer of the main path follows a branch; of CNNs the first does not."""
    return len(parts[AFTER]) == len(parts[BEFORE])


def _pictures(result: Result, name: str, parts: Mapping[str, list[str]]):
    """A few layers from low to high, after and before; each with its largest value as 1."""
    rows, marked = {}, {}
    patch = result.facts["patch"][name]
    for part, layers in parts.items():
        # Of both branches of a block, the first: attention, where there is any.
        chosen = np.arange(len(layers))[:: 2 if _paired(parts) else 1]
        chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, SHOWN).round().astype(int))]
        fields = result.arrays[f"maps/{part}/{name}"][chosen]
        height, width = fields.shape[1:]
        tops = fields.max((1, 2), keepdims=True)
        fields = fields / np.where(tops > 0, tops, 1)
        row = f"{part} addition"
        rows[row] = {layers[i]: field for i, field in zip(chosen, fields, strict=True)}
        corner = (
            width // patch // 2 * patch - 0.5,
            height // patch // 2 * patch - 0.5,
            patch,
            patch,
        )
        marked |= {f"{row}/{layers[i]}": corner for i in chosen}
    return maps(
        rows,
        label="|gradient| (share of its largest)",
        limits=(0, 1),
        power=0.5,
        marked=marked,
        title=f"receptive fields of {name}",
        note="white frame: the patch in the middle",
    )
