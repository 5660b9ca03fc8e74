"""Minibatch CKA: HSICs added up batch by batch, one ratio at the end."""

import copy
import itertools
import numbers
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch

from fastcka import conditioning
from fastcka.batch import examples, image_names, in_order, layer_names
from fastcka.chance_sums import ChanceSums
from fastcka.gram_stack import GramStack
from fastcka.hsic_sums import SMALLEST_BATCH, Block, LayerTotals, weights
from fastcka.influence import as_pairs
from fastcka.influence_sums import InfluenceSums
from fastcka.jackknife import Sums, add, ratio, standard_error
from fastcka.kernels import dispatch, hsic_pairs, native
from fastcka.kernels.operations import OPERANDS, operand_dtype
from fastcka.measure_sums import MeasureSums
from fastcka.measures import check_names
from fastcka.named_sums import named
from fastcka.options import check_choice, check_options, check_whole_number
from fastcka.result import CKAResult, CKAResults
from fastcka.warning import CKAWarning

# Sums over batches are kept apart in this many blocks, batch i in block i mod BLOCKS: enough for
# error bars, and small at any number of batches. Batches of examples that were given before have
# as many of their own, from BLOCKS on.
BLOCKS = 256
WEIGHTINGS = ("pairs", "equal")
LARGEST_INDEX = 2**62
SCHEMA = 1


class MinibatchCKA:
    """CKA between layers, from one batch after the other.

    CKA = Σ_b w_b h_xy / √(Σ_b w_b h_xx · Σ_b w_b h_yy), with h the HSIC of batch b between layers x
    and y, or of each with itself, and w_b its weight [Nguyen et al. 2021]. HSIC_1 is unbiased, so
    in expectation the sums do not depend on the size of the batches, as biased ones do. Standard
    errors come from the delete-one-block jackknife; up to 256 batches a block is a batch. Examples
    that are given `again` count for CKA, not for its error.

    Every batch must be a random sample of the examples: shuffle them once. Batches sorted by class
    measure something else, often near 0. No example may stand twice in a batch.

    Activations are [n, ...]: the first axis are the examples, the others are features. They are
    float16, bfloat16, float32 or float64, and read as values, without gradients.

    Args:
        layers_a: names of the layers of one model; or, for several models, a mapping from model to
            layer names.
        layers_b: names of the layers of a second model; None compares the first with itself.
        weighting: "pairs" weighs a batch by the normaliser of its HSIC, n(n−3) unbiased and (n−1)²
            biased; "equal" weighs all batches alike.
        estimator: "unbiased" (HSIC_1 [Song et al. 2012]) or "biased" [Gretton et al. 2005], whose
            value depends on the batch size.
        gram: "linear" or "rbf". bandwidth: of the RBF, a multiple of the median distance within a
            batch; None is 1.
        operand: "fp32", "fp16" or "bf16", the type of the values multiplied; None is fp32 on a CPU
            and the activations' own 16-bit type on a GPU. In batches of 32 and more, fp16 changes
            CKA by 2e-4 at most, bf16 by 1e-3.
        permutations: how often the images of the second model are put in random order, to learn
            what CKA would be by chance; 0 does not. Costs about as many times the products of all
            pairs, and 8 bytes a pair each. The orders are a function of the number of the batch and
            its size. Give every image once: one that comes again makes p-values too small.
        also: measures beside CKA, from the same Gram matrices: "rsa_cosine", "rsa_correlation",
            "mutual_knn", "cknna", "procrustes" of pairs of layers, "participation_ratio",
            "effective_rank" of layers; see `CKAResult.also`. They need some n³ flop and 32·n² bytes
            a layer, "procrustes" 20·n³ flop a pair.
        influence: pairs (layer_a, layer_b), of several models ((model, layer), (model, layer)):
            what each single image does to their CKA, see `CKAResult.influence`. Costs a few n² flop
            and 8·n² bytes a pair, and keeps 24 bytes an image and pair, less where pairs share
            layers. Give every image once.
        pairs: of several models, those that are compared; None is every pair, each with itself.
        backend: "native", "triton" or "torch"; None picks, see `fastcka info`.

    Raises:
        TypeError: layer names are no list of strings.
        ValueError: an option is unknown, or a model has no layers or two of one name.

    Precision: CKA within 1e-5 of the float64 definition on the values as received; Gram matrices as
    `fastcka.kernels.gram`, all that follows in float64.
    Cost of a batch of n examples and L and M layers, with p features in all: n²·p flop for the Gram
    matrices, L·M·n² for the pairs; 4·n²·(L + M) bytes. The sums take 8·L·M bytes a block.

    >>> import torch
    >>> from fastcka import MinibatchCKA
    >>> cka = MinibatchCKA(["conv1", "conv2"])
    >>> for _ in range(3):
    ...     x = torch.randn(32, 8)
    ...     _ = cka.update([x, x.relu()])
    >>> cka.compute().cka.shape
    (2, 2)
    """

    def __init__(
        self,
        layers_a: Sequence[str] | Mapping[str, Sequence[str]],
        layers_b: Sequence[str] | None = None,
        *,
        weighting: str = "pairs",
        estimator: str = "unbiased",
        gram: str = "linear",
        bandwidth: float | None = None,
        operand: str | torch.dtype | None = None,
        permutations: int = 0,
        also: Sequence[str] = (),
        influence: Sequence[tuple] = (),
        pairs: Sequence[tuple[str, str]] | None = None,
        backend: str | None = None,
    ):
        check_options(estimator, gram, bandwidth)
        check_whole_number("permutations", permutations, 0)
        self.permutations = permutations
        self.also = check_names(also)
        check_choice("weighting", weighting, WEIGHTINGS)
        self.weighting, self.estimator = weighting, estimator
        if gram == "rbf" and bandwidth is None:
            bandwidth = 1.0
        self.gram, self.bandwidth = gram, bandwidth
        self.operand = operand_dtype(operand)
        if backend is not None:
            dispatch.check_backend(backend)
        self.backend = backend
        self._measure = (estimator, gram, bandwidth, self.operand)
        self._many = isinstance(layers_a, Mapping)
        if self._many:
            if layers_b is not None:
                raise ValueError("`layers_b` must be None where `layers_a` names several models")
            models = dict(layers_a)
            if not models:
                raise ValueError("`layers_a` names no model")
        else:
            models = {"a": layers_a} if layers_b is None else {"a": layers_a, "b": layers_b}
        self.layers = {model: layer_names(model, names) for model, names in models.items()}
        if self._many:
            self._pairs = pairs_of(list(self.layers), pairs)
        elif pairs is not None:
            raise ValueError("`pairs` needs several models: `layers_a` as a mapping by model")
        else:
            self._pairs = [("a", "a" if layers_b is None else "b")]
        self._blocks: dict[int, Block] = {}
        self._totals = {model: LayerTotals(len(names)) for model, names in self.layers.items()}
        self._chance = ChanceSums(
            permutations, self._pairs, self.layers, estimator, weighting, backend
        )
        self._measures = MeasureSums(self.also, self._pairs, self.layers)
        wanted = as_pairs(influence, list(self.layers), self._many)
        self._influence = InfluenceSums(wanted, self.layers, estimator, weighting)
        # By the names under which a state keeps them.
        self._beside = {
            "null": self._chance,
            "also": self._measures,
            "influence": self._influence,
        }
        self._numbered: str | None = None  # "arrival" or "index": how batches got their number
        self._ran_on: dict = {}
        self.n_batches = self.n_examples = 0
        self.skipped_batches = self.skipped_examples = 0

    def update(
        self,
        xs,
        ys=None,
        *,
        index: int | None = None,
        again: bool = False,
        images: Sequence[str | int] | None = None,
    ) -> "MinibatchCKA":
        """Add one batch.

        Args:
            xs: activations [n, ...] of every layer, a sequence in the order of `layers_a` or a
                mapping by layer name; for several models, a mapping from model to such.
            ys: the same for `layers_b`, of the same examples in the same order.
            index: number 0, 1, 2, … of the batch in the whole data, where several processes share
                it. Batches of one number, and those 256 apart, make one block of the error bars.
                None numbers batches by arrival.
            again: the examples were given before, in other batches: a second pass. Such batches
                make CKA steadier and its error bars, which are those of the first pass, no
                narrower; `n_examples` counts every pass.
            images: what the examples are called, for `influence`; None where nobody knows.

        Batches of fewer than 4 examples are left out and counted.

        Raises:
            ValueError: layers are missing, unknown or of different numbers of examples.
            TypeError: activations are no floating tensors.
            RuntimeError: activations of one model are on different devices.

        After an error the sums are as they were.
        """
        given = self._by_model(xs, ys)
        n = examples(given, self.layers)
        if n < SMALLEST_BATCH:
            return self.skip(n)
        stacks = {}
        for model, tensors in given.items():
            stacks[model] = self.stack(model, n, tensors[0].device)
            stacks[model].put_all(tensors)
        return self.add(stacks, index=index, again=again, images=images)

    def stack(self, model: str, n: int, device: torch.device | str = "cpu") -> GramStack:
        """An empty stack for the layers of one model, to be filled while the model runs."""
        return GramStack(self.layers[model], n, device=device, **self.stack_options)

    @property
    def stack_options(self) -> dict:
        """What a `GramStack` of these sums is made with."""
        return {
            "estimator": self.estimator,
            "gram": self.gram,
            "bandwidth": self.bandwidth,
            "operand": self.operand,
            "backend": self.backend,
        }

    def skip(self, n: int) -> "MinibatchCKA":
        """Count a batch that is too small for HSIC."""
        self.skipped_batches += 1
        self.skipped_examples += n
        return self

    def add(
        self,
        stacks: Mapping[str, GramStack],
        *,
        index: int | None = None,
        again: bool = False,
        images: Sequence[str | int] | None = None,
    ) -> "MinibatchCKA":
        """Add the filled stacks of one batch, one of each model; the rest as in `update`."""
        if set(stacks) != set(self.layers):
            raise ValueError(
                f"give one stack of each of {', '.join(self.layers)}, not of {', '.join(stacks)}"
            )
        sizes = {model: stack.n for model, stack in stacks.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the models were given different numbers of examples: {sizes}")
        for model, stack in stacks.items():
            stack.check_complete()
            if stack.measure != (self.layers[model], *self._measure):
                raise ValueError(f"the stack of {model!r} was made for other layers or options")
        number = self._number(index)
        n = next(iter(sizes.values()))
        if images is not None:
            images = image_names(images, n)
        block = self._block_of(stacks, n)
        beside = {kind: sums.of(stacks, n, number) for kind, sums in self._beside.items()}
        ran_on = _where_it_ran(next(iter(stacks.values())), self.backend)
        # All is computed: from here on nothing fails.
        for model, stack in stacks.items():
            self._totals[model].add(stack, number)
        where = number % BLOCKS + again * BLOCKS
        if where in self._blocks:
            self._blocks[where].add(block)
        else:
            self._blocks[where] = block
        for kind, sums in self._beside.items():
            sums.add(beside[kind])
        self._influence.name(images)
        self._numbered = "arrival" if index is None else "index"
        self._ran_on = ran_on
        self.n_batches += 1
        self.n_examples += n
        return self

    def _block_of(self, stacks: Mapping[str, GramStack], n: int) -> Block:
        """The weighted HSICs of one batch."""
        weight, factor = weights(n, self.estimator, self.weighting)
        pairs, own = {}, {}
        for a, b in self._pairs:
            packed = stacks[a].packed, None if a == b else stacks[b].packed
            # In place: a copy a block would leave holes as large as the sums in the heap.
            pairs[a, b] = hsic_pairs(*packed, backend=self.backend).mul_(factor)
        for model, stack in stacks.items():
            own[model] = (
                pairs[model, model].diagonal().clone()
                if (model, model) in pairs
                else factor * stack.summary[:, conditioning.CENTRED]
            )
        return Block(weight, pairs, own)

    def merge(self, other: "MinibatchCKA") -> "MinibatchCKA":
        """Add what another accumulator of the same layers and options has seen.

        Batches numbered by arrival are taken to follow those seen here; batches with an index keep
        it. `other` is left as it was.

        Raises:
            ValueError: the options, the layers or the numbering differ; the message names them.
        """
        if not isinstance(other, MinibatchCKA):
            raise TypeError(f"`other` must be a MinibatchCKA, but is {type(other).__name__}")
        if other is self:
            raise ValueError("cannot merge an accumulator with itself: all would count twice")
        _check_same(self._config(), other._config(), "merge")
        if self._numbered and other._numbered and self._numbered != other._numbered:
            raise ValueError("cannot merge batches numbered by arrival with batches with an index")
        shift = self.n_batches if other._numbered == "arrival" else 0
        self._ran_on = self._ran_on or other._ran_on
        for where, block in other._blocks.items():
            place = (where + shift) % BLOCKS + where // BLOCKS * BLOCKS
            if place in self._blocks:
                self._blocks[place].add(block)
            else:
                self._blocks[place] = copy.deepcopy(block)
        for kind, sums in self._beside.items():
            sums.merge(other._beside[kind], shift)
        for model, totals in self._totals.items():
            totals.merge(other._totals[model], shift)
        self._numbered = self._numbered or other._numbered
        self.n_batches += other.n_batches
        self.n_examples += other.n_examples
        self.skipped_batches += other.skipped_batches
        self.skipped_examples += other.skipped_examples
        return self

    def compute(self) -> CKAResult | CKAResults:
        """The result so far; more batches may follow.

        Returns:
            A `CKAResult`; for several models `CKAResults` of all pairs. Layers that are constant or
            held inf or NaN have NaN in their rows and columns and are named in a `CKAWarning`.

        Raises:
            ValueError: no batch of 4 or more examples was given.
        """
        if not self.n_batches:
            left_out = f"; {self._left_out()}" if self.skipped_batches else ""
            raise ValueError(
                f"there is nothing to compute: no batch of {SMALLEST_BATCH} or more examples was "
                f"given{left_out}"
            )
        messages = {
            model: totals.messages(
                self.layers[model], f" of model {model!r}" if len(self.layers) > 1 else ""
            )
            for model, totals in self._totals.items()
        }
        results = {pair: self._result(*pair, messages) for pair in self._pairs}
        for message in dict.fromkeys(m for r in results.values() for m in r.warnings):
            warnings.warn(message, CKAWarning, stacklevel=2)
        return CKAResults(results) if self._many else results[self._pairs[0]]

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs, as tensors and plain values under fixed names."""
        blocks = sorted(self._blocks.items())
        tensors = {
            "block": torch.tensor([w for w, _ in blocks], dtype=torch.int64, device="cpu"),
            "weight": torch.tensor(
                [block.weight for _, block in blocks], dtype=torch.float64, device="cpu"
            ),
        }
        for i, pair in enumerate(self._pairs):
            tensors[f"pair.{i}"] = [block.pairs[pair] for _, block in blocks]
        for i, (model, totals) in enumerate(self._totals.items()):
            tensors[f"own.{i}"] = [block.own[model] for _, block in blocks]
            tensors |= {f"{name}.{i}": value.cpu() for name, value in totals.tensors().items()}
        for kind, sums in self._beside.items():
            tensors |= {f"{kind}.{name}": value for name, value in sums.tensors().items()}
        for name, shape in self.state_shapes(len(blocks)).items():
            if isinstance(tensors[name], list):
                parts = [part.cpu() for part in tensors[name]]
                empty = torch.empty(shape, dtype=torch.float64, device="cpu")
                tensors[name] = torch.stack(parts) if parts else empty
        return {"config": self._config(), "counts": self._counts(), "tensors": tensors}

    def load_state_dict(self, state: Mapping) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to other options or layers, or to another version of the
                format; the message names the difference. Nothing is changed then.
        """
        if not isinstance(state, Mapping) or not {"config", "counts", "tensors"} <= set(state):
            raise ValueError(
                "this is no state of MinibatchCKA: it needs `config`, `counts` and `tensors`"
            )
        _check_same(self._config(), state["config"], "load")
        counts, tensors = state["counts"], state["tensors"]
        _check_same(dict.fromkeys(self._counts()), dict.fromkeys(counts), "load the counts")
        blocks = len(tensors.get("block", ()))
        _check_same(
            self.state_shapes(blocks, tensors),
            {name: tuple(value.shape) for name, value in tensors.items()},
            "load the tensors",
        )
        if counts["images"] is not None:
            there = int(sum(tensors.get("influence.size", ())))
            _check_same({"images": there}, {"images": len(counts["images"])}, "load the names")
        self._blocks = {
            int(where): Block(
                float(tensors["weight"][place]),
                {p: tensors[f"pair.{i}"][place].clone() for i, p in enumerate(self._pairs)},
                {m: tensors[f"own.{i}"][place].clone() for i, m in enumerate(self.layers)},
            )
            for place, where in enumerate(tensors["block"])
        }
        for kind, sums in self._beside.items():
            sums.load(named(tensors, f"{kind}."))
        self._influence.images = copy.copy(counts["images"])
        for position, totals in enumerate(self._totals.values()):
            totals.load({name: tensors[f"{name}.{position}"] for name in totals.tensors()})
        self._numbered, self._ran_on = counts["numbered"], dict(counts["ran_on"])
        self.n_batches, self.n_examples = counts["n_batches"], counts["n_examples"]
        self.skipped_batches = counts["skipped_batches"]
        self.skipped_examples = counts["skipped_examples"]

    def state_shapes(
        self, blocks: int, tensors: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a state with so many blocks, of 8 bytes an entry.

        What grows with the images has the size it has in `tensors`, or now.
        """
        size = {model: len(names) for model, names in self.layers.items()}
        shapes = {"block": (blocks,), "weight": (blocks,)}
        for kind, sums in self._beside.items():
            held = sums.tensors() if tensors is None else named(tensors, f"{kind}.")
            shapes |= {f"{kind}.{name}": shape for name, shape in sums.shapes(held).items()}
        for i, (a, b) in enumerate(self._pairs):
            shapes[f"pair.{i}"] = (blocks, size[a], size[b])
        for i, (model, totals) in enumerate(self._totals.items()):
            shapes[f"own.{i}"] = (blocks, size[model])
            for name, value in totals.tensors().items():
                shapes[f"{name}.{i}"] = tuple(value.shape)
        return shapes

    def _config(self) -> dict:
        return {
            "schema": SCHEMA,
            "layers": {model: list(names) for model, names in self.layers.items()},
            "pairs": [list(pair) for pair in self._pairs],
            "weighting": self.weighting,
            "estimator": self.estimator,
            "gram": self.gram,
            "bandwidth": self.bandwidth,
            "permutations": self.permutations,
            "also": list(self.also),
            "influence": [[list(end) for end in pair] for pair in self._influence.wanted],
            "operand": next((k for k, v in OPERANDS.items() if v == self.operand), None),
        }

    def _counts(self) -> dict:
        return {
            "numbered": self._numbered,
            "ran_on": self._ran_on,
            "images": copy.copy(self._influence.images),
            "n_batches": self.n_batches,
            "n_examples": self.n_examples,
            "skipped_batches": self.skipped_batches,
            "skipped_examples": self.skipped_examples,
        }

    def _left_out(self) -> str:
        count, one = self.skipped_batches, self.skipped_batches == 1
        return (
            f"{count} batch{'' if one else 'es'} of fewer than {SMALLEST_BATCH} examples "
            f"{'was' if one else 'were'} left out"
        )

    def _number(self, index: int | None) -> int:
        numbered = "arrival" if index is None else "index"
        if self._numbered not in (None, numbered):
            raise ValueError(
                "either every batch has an `index` or none has; this one differs from those before"
            )
        if index is None:
            return self.n_batches
        if not isinstance(index, numbers.Integral) or not 0 <= index < LARGEST_INDEX:
            raise ValueError(f"`index` must be a whole number from 0 on, but is {index!r}")
        return int(index)

    def _by_model(self, xs, ys) -> dict[str, list[torch.Tensor]]:
        if self._many:
            if ys is not None or not isinstance(xs, Mapping) or set(xs) != set(self.layers):
                raise ValueError(
                    f"give one mapping with the activations of {', '.join(self.layers)}"
                )
            given = dict(xs)
        else:
            wants_b = "b" in self.layers
            if wants_b != (ys is not None):
                raise ValueError(
                    "`ys` is missing: there is a second model, `layers_b`"
                    if wants_b
                    else "`ys` was given, but there is no second model: `layers_b` is None"
                )
            given = {"a": xs, "b": ys} if wants_b else {"a": xs}
        return {model: in_order(model, self.layers[model], given[model]) for model in self.layers}

    def _sums(self, a: str, b: str) -> tuple[list[Sums], list[Sums]]:
        """The blocks of a pair of models: of examples given once, and of those given again."""
        found: tuple[list[Sums], list[Sums]] = [], []
        for where, block in sorted(self._blocks.items()):
            parts = (block.pairs[a, b], block.own[a], block.own[b])
            found[where >= BLOCKS].append(Sums(*(part.cpu().numpy() for part in parts)))
        return found

    def _result(self, a: str, b: str, messages: dict[str, list[str]]) -> CKAResult:
        blocks, again = self._sums(a, b)
        total = add(blocks + again)
        # Examples that come again are no more examples: the error is that of the others alone.
        cka, stderr = ratio(total), standard_error(blocks or [total])
        without = [self._totals[model].without_value() for model in (a, b)]
        for matrix in (cka, stderr):
            matrix[without[0]] = matrix[:, without[1]] = np.nan
        least = [self._totals[model].least_share() for model in (a, b)]
        influence = self._influence.results(a, b, total, cka, *least)
        weight = sum(block.weight for block in self._blocks.values())
        told = list(dict.fromkeys(messages[a] + messages[b]))
        if self.skipped_batches:
            told.append(f"{self._left_out()} ({self.skipped_examples} examples)")
        config = self._config()
        meta = {name: config[name] for name in config if name not in ("schema", "layers", "pairs")}
        meta |= {
            "n_blocks": len(blocks),
            "skipped_batches": self.skipped_batches,
            "skipped_examples": self.skipped_examples,
            "fastcka": version("fastcka"),
            "torch": torch.__version__,
            "conditioning_a": self._totals[a].conditioning.tolist(),
            "conditioning_b": self._totals[b].conditioning.tolist(),
            **self._ran_on,
        }
        return CKAResult(
            cka=cka,
            stderr=stderr,
            hsic_ab=total.ab / weight,
            hsic_aa=total.aa / weight,
            hsic_bb=total.bb / weight,
            layers_a=self.layers[a],
            layers_b=self.layers[b],
            n_examples=self.n_examples,
            n_batches=self.n_batches,
            warnings=tuple(told),
            meta=meta,
            null=self._chance.results(a, b, total, *without),
            also=self._measures.results(a, b, *without),
            influence=influence,
            images=self._influence.names() if influence else None,
        )


def pairs_of(
    models: Sequence[str], pairs: Iterable[tuple[str, str]] | None
) -> list[tuple[str, str]]:
    """Those asked for, each once, or all; the models of each in their own order.

    >>> pairs_of(["a", "b", "c"], [("c", "a"), ("b", "b")])
    [('a', 'c'), ('b', 'b')]
    """
    every = list(itertools.combinations_with_replacement(models, 2))
    if pairs is None:
        return every
    wanted = set()
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not set(pair) <= set(models):
            raise ValueError(f"`pairs` must hold pairs of {', '.join(models)}, but holds {pair!r}")
        wanted |= {tuple(pair), tuple(pair)[::-1]}
    if not wanted:
        raise ValueError("`pairs` is empty: name at least one pair, or leave it out")
    return [pair for pair in every if pair in wanted]


def _where_it_ran(stack: GramStack, backend: str | None) -> dict:
    device, dtype = stack.packed.device, stack.dtype
    operation = "gram_finish" if stack.gram == "linear" else "gram"
    if dtype is None:  # reduced elsewhere: nothing but products was left to do
        operation, dtype = "hsic_pairs", stack.packed.dtype
    name = dispatch.name_of(operation, device, dtype, stack.n, backend)
    return {
        "device": str(device),
        "backend": name,
        "isa": native.module.isa() if name == "native" else None,
        "threads": native.thread_count() if name == "native" else torch.get_num_threads(),
    }


def _check_same(ours: dict, theirs: Mapping, verb: str) -> None:
    theirs = theirs if isinstance(theirs, Mapping) else {}
    for name in sorted(set(theirs) - set(ours)):
        raise ValueError(f"cannot {verb}: `{name}` is not known here")
    for name, value in ours.items():
        if name not in theirs:
            raise ValueError(f"cannot {verb}: `{name}` is missing")
        if theirs[name] != value:
            raise ValueError(
                f"cannot {verb}: `{name}` is {value!r} here, but {theirs.get(name)!r} there"
            )
