"""What a measurement returns: the matrix, its error bars, and how it was obtained."""

import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastcka import array_file, permutation, result_tables
from fastcka.report.heatmap import heatmap

ALSO = "also."  # how the names of measures beside CKA begin in a file


@dataclass(frozen=True, eq=False)
class CKAResult:
    """CKA between every layer of one network and every layer of another.

    Attributes:
        cka: [L, M] float64; 1 is equal up to rotation and scale, 0 is unrelated. The unbiased
            estimate may be slightly negative. NaN for layers that `warnings` names.
        stderr: [L, M], standard error over independent batches, of several passes those of the
            first; NaN for a single block.
        hsic_ab: [L, M]; hsic_aa: [L]; hsic_bb: [M]: weighted means over the batches, in the unit of
            squared Gram entries, so that cka = hsic_ab / √(hsic_aa · hsic_bb).
        layers_a, layers_b: names of the rows and columns.
        n_examples, n_batches: what was measured, in all passes together; batches that were left out
            are in `meta`.
        warnings: one sentence each.
        meta: what the numbers depend on: estimator, weighting, gram, bandwidth, operand (as asked
            for), backend, isa, device, threads, versions; n_blocks of the error bars; what was left
            out; conditioning_a and _b, of each layer the largest raw Gram entry by the rms of the
            centred ones, whose digits the subtraction of the mean row saves.
        null: [K, L, M], CKA by chance: with the images of the second model in K random orders,
            which all layers share; None where it was not asked for.
        also: measures beside CKA, as asked for, means over the batches: [L, M] of pairs of layers,
            [L] and [M] of layers, as name_a and name_b. Within a batch of n examples, which all
            depend on: "rsa_cosine" and "rsa_correlation", of the squared distances of all pairs of
            examples; "mutual_knn", the share of the 10 nearest by cosine that two layers have in
            common, 10/(n−1) by chance, and "cknna", CKA among these, as [Huh et al. 2024] but of
            rows less the mean of the batch; "procrustes", 1 − half the squared Procrustes distance
            of normalised layers, to 1e-3 for float32 activations; "participation_ratio" (Σλ)²/Σλ²
            and "effective_rank" exp(entropy) of the eigenvalues of the centred Gram matrix, n − 1
            at most. Batches of up to 10 have no neighbours, and where a layer is constant in a
            batch, that batch does not count for it.
        influence: by pair (layer_a, layer_b), as asked for, what each image does: [n_examples], CKA
            less what it is without the image, all else as it is, in the order in which they were
            read. Positive where the image raises CKA, 0 for a layer with itself. The other images
            of its batch stay together; a batch of 4 without one of them is too small and left out,
            and a Gaussian Gram matrix keeps its bandwidth. NaN where CKA is, and where without the
            image nothing is left. Images of batches that were left out are not among them.
        images: their names, where the data say them: of files within the folder, what `ids` says,
            or the numbers by which two fingerprints know them.
    """

    cka: np.ndarray
    stderr: np.ndarray
    hsic_ab: np.ndarray
    hsic_aa: np.ndarray
    hsic_bb: np.ndarray
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    n_examples: int
    n_batches: int
    warnings: tuple[str, ...] = ()
    meta: dict = field(default_factory=dict)
    null: np.ndarray | None = None
    also: dict[str, np.ndarray] = field(default_factory=dict)
    influence: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    images: tuple[str | int, ...] | None = None

    def __repr__(self) -> str:
        shape = f"{len(self.layers_a)} x {len(self.layers_b)} layers"
        return (
            f"CKAResult({shape}, {self.n_examples} examples in {self.n_batches} batches,\n"
            f"{np.array2string(self.cka, precision=3)})"
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the two models; of one alone, where it was compared with itself."""
        facts = self.meta.get("models")
        if facts:
            return tuple(model["name"] for model in facts.values())
        # Equal layers with equal HSICs are one model, compared with itself.
        one = self.layers_a == self.layers_b and np.array_equal(self.hsic_aa, self.hsic_bb, True)
        return ("model a",) if one else ("model a", "model b")

    @property
    def measured(self) -> str:
        """What was measured, in a line."""
        batches = f"{self.n_batches} batch{'' if self.n_batches == 1 else 'es'}"
        estimator = f"{self.meta.get('estimator', '')} CKA".strip()
        weights = [model.get("weights", "") for model in self.meta.get("models", {}).values()]
        untrained = any(known.startswith("untrained") for known in weights)
        passes = self.meta.get("passes", 1)
        return (
            f"{f'{passes} passes, together ' if passes > 1 else ''}"
            f"{self.n_examples} examples in {batches}, {estimator}"
            f"{', untrained networks' if untrained else ''}"
        )

    def transposed(self) -> "CKAResult":
        """The same with the two models in the other order.

        >>> import torch, fastcka
        >>> cka = fastcka.MinibatchCKA(["x"], ["y", "z"])
        >>> result = cka.update([torch.rand(8, 4)], torch.rand(2, 8, 4).unbind()).compute()
        >>> result.transposed().layers_a
        ('y', 'z')
        """
        other = {"a": "b", "b": "a"}

        def turned(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
            if value.ndim > 1:
                return name, np.swapaxes(value, -1, -2)
            return name[:-1] + other[name[-1]], value  # of the layers of one model

        names = ("models", "conditioning")
        meta = {k: v for k, v in self.meta.items() if not k.startswith(names)}
        models = list(self.meta.get("models", {}).values())
        if models:
            meta["models"] = dict(zip("ab", reversed(models), strict=False))
        for side in "ab":
            if f"conditioning_{side}" in self.meta:
                meta[f"conditioning_{other[side]}"] = self.meta[f"conditioning_{side}"]
        return replace(
            self,
            cka=self.cka.T,
            stderr=self.stderr.T,
            hsic_ab=self.hsic_ab.T,
            hsic_aa=self.hsic_bb,
            hsic_bb=self.hsic_aa,
            layers_a=self.layers_b,
            layers_b=self.layers_a,
            meta=meta,
            null=None if self.null is None else np.swapaxes(self.null, -1, -2),
            also=dict(turned(name, value) for name, value in self.also.items()),
            influence={pair[::-1]: value for pair, value in self.influence.items()},
        )

    def ci(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Confidence interval for the CKA of the population: cka ± t · stderr.

        t is the quantile of Student's distribution with k − 1 degrees of freedom, k the blocks of
        batches. Meant for k >= 10 independent batches of light-tailed data: 95 % intervals then
        cover the truth in 93 to 97 % of cases. With weighting="equal" and a last batch much smaller
        than the others they are too wide; with fewer batches and a small last one, too narrow.
        Of several passes they are those of the first, about the CKA of all. The ends are not
        clipped to 0 and 1, and not widened for many layers.

        Args:
            level: between 0 and 1.

        Returns:
            Lower and upper ends, [L, M] each; NaN where the standard error is.

        >>> import torch, fastcka
        >>> cka = fastcka.MinibatchCKA(["x"], ["y"])
        >>> for _ in range(10):
        ...     _ = cka.update([torch.randn(16, 4)], [torch.randn(16, 4)])
        >>> low, high = cka.compute().ci(0.95)
        >>> bool(low < high)
        True
        """
        _check_level(level)
        from scipy.stats import t

        freedom = self.meta["n_blocks"] - 1
        half = t.ppf((1 + level) / 2, freedom) * self.stderr if freedom > 0 else self.stderr
        return self.cka - half, self.cka + half

    def p_values(self) -> np.ndarray:
        """How likely so large a CKA is where layers are unrelated: (1 + #{null >= cka})/(K + 1).

        Each pair of layers for itself; `p_value_of` takes a search over layers into account.
        Exact where the images are independent and the data were read once. Of a model with itself
        the diagonal means nothing.

        Returns:
            [L, M], from 1/(K + 1) to 1; NaN where CKA is.

        Raises:
            ValueError: `calibrate` was not asked for.
        """
        return permutation.p_values(self.cka, self._chance())

    def p_value_of(self, statistic: Callable[[np.ndarray], float]) -> float:
        """How likely so large a number made of all cells is by chance, such as `numpy.nanmax`.

        Of a model with itself take a statistic that leaves the diagonal out.

        >>> import fastcka, numpy, torch
        >>> cka = fastcka.MinibatchCKA(["x"], ["y"], permutations=99)
        >>> x = torch.randn(32, 4)
        >>> cka.update([x], [x[:, :2]]).compute().p_value_of(numpy.nanmax)
        0.01
        """
        return permutation.p_value_of(statistic, self.cka, self._chance())

    def calibrated(self, level: float = 0.05) -> np.ndarray:
        """CKA beyond chance: (cka − τ)/(1 − τ), and 0 up to τ [Gröger et al. 2026].

        τ is the ⌈(1 − level)(K + 1)⌉-th smallest of null and cka, for each pair of layers. So
        unrelated layers score 0 in a share of 1 − level, and equal ones 1.

        Returns:
            [L, M], from 0 to 1; NaN where CKA is.

        Raises:
            ValueError: `calibrate` was not asked for, or with too few permutations for `level`,
                19 for 0.05; `level` is not between 0 and 1.
        """
        _check_level(level)
        return permutation.calibrated(self.cka, self._chance(), level)

    def _chance(self) -> np.ndarray:
        if self.null is None:
            raise ValueError("there is nothing to say about chance: measure with calibrate=True")
        return self.null

    def save(self, path: str | os.PathLike) -> Path:
        """Write the result to one file, all digits kept; `load` reads it.

        An older file is replaced at once or, after an error, left as it was.

        Args:
            path: of the file, a safetensors file whatever its name ends in.

        Raises:
            TypeError: `meta` holds what JSON cannot; the message names it.
            FileNotFoundError: the folder does not exist.

        >>> import fastcka, tempfile, torch
        >>> result = fastcka.MinibatchCKA(["conv1"]).update([torch.randn(8, 4)]).compute()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fastcka.CKAResult.load(result.save(f"{folder}/conv.safetensors")).layers_a
        ('conv1',)
        """
        return array_file.write(path, "CKAResult", [self.as_record()])

    def file_size(self) -> int:
        """Bytes of the file that `save` writes."""
        return array_file.size("CKAResult", [self.as_record()])

    @classmethod
    def load(cls, path: str | os.PathLike) -> "CKAResult":
        """Read what `save` wrote; tuples within `meta` come back as lists.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, from a newer fastcka, or holds no single result.
        """
        with array_file.understood(path):
            return cls.from_record(array_file.read(path, "CKAResult")[0])

    @classmethod
    def from_record(cls, fields: dict) -> "CKAResult":
        """What `as_record` gave, as it comes back from a file."""
        names = ("layers_a", "layers_b", "warnings")
        also = {name: fields.pop(name) for name in list(fields) if name.startswith(ALSO)}
        fields["also"] = {name.removeprefix(ALSO): value for name, value in also.items()}
        pairs = [tuple(pair) for pair in fields.pop("influence_of", ())]
        changes = fields.pop("influence", np.empty((0, fields["n_examples"])))
        fields["influence"] = dict(zip(pairs, changes, strict=False))
        if fields.get("images") is not None:
            names = (*names, "images")
        result = cls(**fields | {name: tuple(fields[name]) for name in names})
        sides = {"_a": len(result.layers_a), "_b": len(result.layers_b)}
        both = tuple(sides.values())
        shapes = {"cka": both, "stderr": both, "hsic_ab": both}
        shapes |= {"hsic_aa": both[:1], "hsic_bb": both[1:]}
        arrays = {name: getattr(result, name) for name in shapes}
        for name, value in result.also.items():
            arrays[name] = value
            shapes[name] = both if value.ndim == 2 else (sides[name[-2:]],)
        if result.null is not None:
            arrays["null"], shapes["null"] = result.null, (len(result.null), *both)
        arrays["influence"], shapes["influence"] = changes, (len(pairs), result.n_examples)
        if result.images is not None:
            arrays["images"] = np.empty(len(result.images))
            shapes["images"] = (result.n_examples,)
        for name, value in arrays.items():
            if value.shape != shapes[name]:
                raise ValueError(f"`{name}` has shape {value.shape}, expected is {shapes[name]}")
        return result

    def as_record(self) -> dict:
        """All fields, with every array under a name of its own."""
        fields = {k: v for k, v in vars(self).items() if k not in ("also", "influence")}
        if self.influence:
            fields["influence_of"] = list(self.influence)
            fields["influence"] = np.stack(list(self.influence.values()))
        return fields | {ALSO + name: value for name, value in self.also.items()}

    def plot(
        self,
        path: str | os.PathLike | None = None,
        *,
        errors: bool = False,
        title: str | None = None,
        ax=None,
    ):
        """Draw the matrix, the first layers at the bottom left, colours from 0 to 1.

        Args:
            path: where to save the figure, as .png, .pdf or .svg; None saves nothing.
            errors: show standard errors: up to 12 x 12 layers in the cells, beyond as a second
                panel.
            ax: matplotlib axes to draw in, of the size they have now; None makes a figure as large
                as it needs to be.

        Returns:
            The matplotlib Figure.

        Raises:
            ValueError: the suffix is unknown, there are no standard errors, or two panels were
                asked for in one `ax`.

        >>> import fastcka, torch
        >>> result = fastcka.MinibatchCKA(["conv1"]).update([torch.randn(8, 4)]).compute()
        >>> result.plot(title="One layer").axes[0].get_title("left")
        'One layer'
        """
        return heatmap(
            self.cka,
            {self.models[0]: self.layers_a},
            {self.models[-1]: self.layers_b},
            stderr=self.stderr if errors else None,
            title=title,
            note=self.measured,
            path=path,
            ax=ax,
        )

    def to_pandas(self):
        """A pandas DataFrame with columns layer_a, layer_b, cka, stderr, one row a pair of layers.

        Beside them p_value and calibrated where chance was measured, and `also` of pairs. Rows of
        the matrix follow each other; `attrs` holds `meta`. Needs pandas.

        >>> import fastcka, torch
        >>> result = fastcka.MinibatchCKA(["conv1"]).update([torch.randn(8, 4)]).compute()
        >>> list(result.to_pandas().columns)
        ['layer_a', 'layer_b', 'cka', 'stderr']
        """
        return result_tables.long_table(self)

    def to_xarray(self):
        """An xarray Dataset of all arrays over layer_a and layer_b, whose labels are the names.

        `attrs` holds n_examples, n_batches and what of `meta` is one number or string. Needs
        xarray.

        >>> import fastcka, torch
        >>> result = fastcka.MinibatchCKA(["conv1"]).update([torch.randn(8, 4)]).compute()
        >>> float(result.to_xarray().cka.sel(layer_a="conv1", layer_b="conv1").round(6))
        1.0
        """
        return result_tables.dataset(self)


def _check_level(level: float) -> None:
    if not isinstance(level, numbers.Real) or not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, but is {level!r}")


class CKAResults(Mapping):
    """The results of several models: `results["vit", "resnet"]` is a `CKAResult`.

    Holds every pair of models in the order in which they were named, each with itself included.
    """

    def __init__(self, pairs: Mapping[tuple[str, str], CKAResult]):
        self._pairs = dict(pairs)

    def __getitem__(self, pair: tuple[str, str]) -> CKAResult:
        if pair not in self._pairs:
            if isinstance(pair, tuple) and pair[::-1] in self._pairs:
                raise KeyError(f"no result for {pair!r}: take {pair[::-1]!r} and transpose it")
            known = ", ".join(dict.fromkeys(name for names in self._pairs for name in names))
            raise KeyError(f"no result for {pair!r}: ask for a pair of {known}")
        return self._pairs[pair]

    def __repr__(self) -> str:
        return f"CKAResults({', '.join(f'{a} ~ {b}' for a, b in self._pairs)})"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def save(self, path: str | os.PathLike) -> Path:
        """Write all pairs to one file, as `CKAResult.save`."""
        return array_file.write(path, "CKAResults", self._records())

    def file_size(self) -> int:
        """Bytes of the file that `save` writes."""
        return array_file.size("CKAResults", self._records())

    def _records(self) -> list[dict]:
        return [{"pair": pair, **result.as_record()} for pair, result in self.items()]

    @classmethod
    def load(cls, path: str | os.PathLike) -> "CKAResults":
        """Read what `save` wrote, as `CKAResult.load`."""
        with array_file.understood(path):
            records = array_file.read(path, "CKAResults")
            return cls(
                {tuple(fields.pop("pair")): CKAResult.from_record(fields) for fields in records}
            )

    def plot(
        self,
        path: str | os.PathLike | None = None,
        *,
        errors: bool = False,
        title: str | None = None,
        ax=None,
    ):
        """Draw all models' layers in one square, blank for pairs without a result.

        Arguments, figure and errors are those of `CKAResult.plot`.
        """
        layers = {a: result.layers_a for (a, _), result in self.items()}
        layers |= {b: result.layers_b for (_, b), result in self.items()}
        return heatmap(
            self._joint("cka", layers),
            layers,
            layers,
            stderr=self._joint("stderr", layers) if errors else None,
            title=title,
            note="; ".join(dict.fromkeys(result.measured for result in self.values())),
            path=path,
            ax=ax,
        )

    def between_models(self) -> dict[str, dict[str, float]]:
        """How well each model's layers are matched in each other model: table[model][other].

        The mean over the layers of `model` of their highest CKA with a layer of `other`; of a model
        with itself, with another layer of its own. So table[a][b] is not table[b][a]: a shallow
        model can be found within a deep one. Layers without a value are left out; NaN where none
        is left. The highest of many noisy values is too high: by less than their standard errors
        times √(2 ln M), M the layers of `other`.

        >>> import fastcka, torch
        >>> cka = fastcka.MinibatchCKA({"a": ["0"], "b": ["0", "1"]})
        >>> x = torch.randn(32, 4)
        >>> table = cka.update({"a": [x], "b": [x, torch.randn(32, 9)]}).compute().between_models()
        >>> round(table["a"]["b"], 6), table["b"]["a"] < 1
        (1.0, True)
        """
        names = dict.fromkeys(name for pair in self for name in pair)
        table: dict[str, dict[str, float]] = {name: {} for name in names}
        for (a, b), result in self.items():
            values = result.cka.copy()
            if a == b:
                np.fill_diagonal(values, np.nan)
            table[a][b] = _mean_of_highest(values)
            table[b][a] = _mean_of_highest(values.T)
        return {
            name: {other: row[other] for other in names if other in row}
            for name, row in table.items()
        }

    def _joint(self, name: str, layers: Mapping[str, tuple[str, ...]]) -> np.ma.MaskedArray:
        """The matrices of all pairs in one, masked where neither (a, b) nor (b, a) is there."""
        ends = np.cumsum([len(names) for names in layers.values()])
        rows = {m: slice(end - len(layers[m]), end) for m, end in zip(layers, ends, strict=True)}
        whole = np.ma.masked_all((ends[-1], ends[-1]))
        for (a, b), result in self.items():
            block = getattr(result, name)
            whole[rows[a], rows[b]] = block
            if (b, a) not in self:
                whole[rows[b], rows[a]] = block.T
        return whole


def _mean_of_highest(values: np.ndarray) -> float:
    """Over the rows that have a value."""
    known = values[np.isfinite(values).any(1)]
    return float(np.nanmax(known, axis=1).mean()) if len(known) else float("nan")
