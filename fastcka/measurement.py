"""Any number of models over the batches of the data: the engine of a comparison."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from fastcka.data.images import ImageBatches
from fastcka.data.labels import labels
from fastcka.data.loaders import length, sampler
from fastcka.data.pairing import Paired
from fastcka.data.shuffling import ClassMixing, unshuffled
from fastcka.gram_stack import GramStack
from fastcka.options import check_whole_number
from fastcka.participant import Inputs, Participant, autocast_name
from fastcka.provenance import provenance
from fastcka.result import CKAResult, CKAResults
from fastcka.streaming import SMALLEST_BATCH, MinibatchCKA
from fastcka.warning import CKAWarning


def measure(
    participants: list[Participant],
    data: Iterable,
    *,
    n: int | None,
    passes: int,
    progress: bool,
    many: bool,
    **options,
) -> CKAResult | CKAResults:
    """Run the models over the data; `options` are those of `MinibatchCKA`."""
    if n is not None:
        check_whole_number("n", n, SMALLEST_BATCH)
    check_whole_number("passes", passes, 1)
    sums = _Sums(participants, many, options)
    account = _Account(participants, data, n, passes)
    _warn(account.before)
    try:
        with ExitStack() as stack:
            for participant in participants:
                stack.enter_context(participant.ready())
            for turn, number, batch in _batches(data, account.loaders, passes, progress):
                inputs = {p.label: p.inputs(batch) for p in participants}
                size = _common_size(inputs)
                if turn == number == 0:
                    _check_divides(n, account.loaders[0], size)
                sums.add(inputs, _parts(size, n), turn, number)
                account.see(batch, _parts(size, n))
    except BaseException as error:
        if sums.accumulator is not None:  # hours may be behind us
            error.partial = _returned(account.explain(sums.results()), many)
        raise
    results = account.explain(sums.results())
    told = dict.fromkeys(told for each in results.values() for told in each.warnings)
    _warn([message for message in told if message not in account.before])
    return _returned(results, many)


def _returned(results: dict[tuple[str, ...], CKAResult], many: bool) -> CKAResult | CKAResults:
    return CKAResults(results) if many else next(iter(results.values()))


class _Account:
    """All that should be known of a comparison beside its numbers."""

    def __init__(self, participants: list[Participant], data: Iterable, n: int | None, passes: int):
        self.participants = participants
        self.loaders = (data.a, data.b) if isinstance(data, Paired) else (data,)
        unlike = (told for loader in self.loaders for told in unshuffled(loader))
        self.before = tuple(dict.fromkeys(unlike))
        self._mixing = ClassMixing()
        self._facts = provenance(participants[0].device) | {
            "n": n,
            "passes": passes,
            "autocast": autocast_name(participants[0].autocast),
        }
        self._data()  # now: after hours, or an error, the files may be gone

    def _data(self) -> dict:
        return dict(zip(("data", "data_b"), map(_describe, self.loaders), strict=False))

    def see(self, batch, parts: list[slice]) -> None:
        """Watch the classes of a batch."""
        known = labels(batch if len(self.loaders) == 1 else batch[0])
        if known is not None and len(known) == parts[-1].stop:
            for part in parts:
                self._mixing.see(known[part])

    def explain(
        self, results: dict[tuple[str, ...], CKAResult]
    ) -> dict[tuple[str, ...], CKAResult]:
        """The results with warnings, and with where they come from."""
        after = [notice for p in self.participants for notice in p.capture.notices]
        after += self._mixing.warnings()
        for loader in self.loaders:
            after += loader.notices() if isinstance(loader, ImageBatches) else []
        models = {p.label: p.describe() for p in self.participants}
        return {
            pair: replace(
                result,
                warnings=(*self.before, *after, *result.warnings),
                meta=self._facts
                | self._data()
                | {"models": _sides(*(models[label] for label in pair))}
                | result.meta,
            )
            for pair, result in results.items()
        }


class _Sums:
    """The accumulator of a comparison, made when the first batch has shown the layers."""

    def __init__(self, participants: list[Participant], many: bool, options: dict):
        self.participants, self.many, self.options = participants, many, options
        # Names no layer, but checks the options before any model runs.
        self.stack_options = MinibatchCKA(["any"], **options).stack_options
        self.accumulator: MinibatchCKA | None = None
        self.left_out: list[int] = []  # sizes of the parts that are too small
        self._added: Counter = Counter()  # CKA batches of each pass
        self._devices: dict[str, torch.device] = {}  # where the activations of a model are

    def add(self, inputs: Mapping[str, Inputs], parts: list[slice], turn: int, number: int) -> None:
        """Run the models on batch `number` of pass `turn`, and add its parts, a CKA batch each."""
        sizes = [part.stop - part.start for part in parts]
        self.left_out += [size for size in sizes if size < SMALLEST_BATCH]
        parts = [part for part, size in zip(parts, sizes, strict=True) if size >= SMALLEST_BATCH]
        if not parts:
            return
        stacks = {
            p.label: self._stacks(p, inputs[p.label], parts, number) for p in self.participants
        }
        if self.accumulator is None:
            self.accumulator = self._accumulator()
        for part in range(len(parts)):
            # Further passes add nothing independent: they go to the blocks of the first.
            self.accumulator.add(
                {label: filled[part] for label, filled in stacks.items()}, index=self._added[turn]
            )
            self._added[turn] += 1

    def _stacks(
        self, participant: Participant, inputs: Inputs, parts: list[slice], number: int
    ) -> list[GramStack]:
        """The filled stacks of one model, one for each part of a batch."""
        if self.accumulator is None:
            return self._first_stacks(participant, inputs, parts, number)
        label = participant.label
        places = {layer: row for row, layer in enumerate(participant.capture.layers)}
        stacks = [
            self.accumulator.stack(label, part.stop - part.start, self._devices[label])
            for part in parts
        ]

        def put(layer: str, x: torch.Tensor) -> None:
            for stack, part in zip(stacks, parts, strict=True):
                stack.put(places[layer], x[part])

        participant.run(inputs, number, put)
        return stacks

    def _first_stacks(
        self, participant: Participant, inputs: Inputs, parts: list[slice], number: int
    ) -> list[GramStack]:
        """The same while the layers are not known: a stack each, joined when they are."""
        rows: list[dict[str, GramStack]] = [{} for _ in parts]

        def put(layer: str, x: torch.Tensor) -> None:
            for row, part in zip(rows, parts, strict=True):
                size = part.stop - part.start
                row[layer] = GramStack([layer], size, device=x.device, **self.stack_options)
                row[layer].put(0, x[part])

        participant.run(inputs, number, put)
        layers = participant.capture.layers
        stacks = [GramStack.joined([row.pop(layer) for layer in layers]) for row in rows]
        self._devices[participant.label] = stacks[0].packed.device
        return stacks

    def _accumulator(self) -> MinibatchCKA:
        layers = {p.label: p.capture.layers for p in self.participants}
        if self.many:
            return MinibatchCKA(layers, **self.options)
        return MinibatchCKA(layers["a"], layers.get("b"), **self.options)

    def results(self) -> dict[tuple[str, ...], CKAResult]:
        """The results of all pairs, by the labels of the models."""
        accumulator = self.accumulator
        if accumulator is None:
            accumulator = MinibatchCKA(["any"], **self.options)  # says that there is nothing
        for size in self.left_out:
            accumulator.skip(size)
        with warnings.catch_warnings():  # they are told once, with what the hooks have seen
            warnings.simplefilter("ignore", CKAWarning)
            computed = accumulator.compute()
        return dict(computed) if self.many else {tuple(accumulator.layers): computed}


def _batches(
    data: Iterable, loaders: tuple[Iterable, ...], passes: int, progress: bool
) -> Iterator[tuple[int, int, object]]:
    """Pass, number and batch, one after the other, and a bar that shows them go by."""
    from tqdm import tqdm

    if passes > 1 and any(isinstance(loader, Iterator) for loader in loaders):
        raise ValueError(
            f"`passes` is {passes}, but an iterator can be read once; give a list or a loader"
        )
    lengths = [length(loader) for loader in loaders]
    total = None if None in lengths else lengths[0] * passes
    bar = tqdm(total=total, desc="comparing", unit="batch", disable=None if progress else True)
    with bar:
        for turn in range(passes):
            for loader in loaders:
                if hasattr(loader, "set_epoch"):
                    loader.set_epoch(turn)
            number = -1
            for number, batch in enumerate(data):
                yield turn, number, batch
                bar.update()
            if number < 0:
                raise ValueError(f"`data` gave no batches{f' in pass {turn + 1}' if turn else ''}")


def _parts(size: int, n: int | None) -> list[slice]:
    """The CKA batches of a forward batch."""
    step = size if n is None else n
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _common_size(inputs: Mapping[str, Inputs]) -> int:
    sizes = {label: given.n for label, given in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the models were given different numbers of examples: {sizes}")
    return next(iter(sizes.values()))


def _check_divides(n: int | None, data: Iterable, size: int) -> None:
    """A batch that is no multiple of n would give CKA batches of two sizes all along."""
    size = max(getattr(data, "batch_size", None) or 0, size)  # the first may be the short one
    if n is not None and size % n:
        raise ValueError(
            f"`n` is {n}, but the batches of `data` hold {size} images; give batches of a multiple "
            "of `n`, or leave it out"
        )


def _sides(a: dict, b: dict | None = None) -> dict[str, dict]:
    """The facts of two models, or of one that was compared with itself."""
    return {"a": a} if b is None or b is a else {"a": a, "b": b}


def _describe(data: Iterable) -> dict:
    """What a result says of the data."""
    if isinstance(data, ImageBatches):
        return data.provenance()
    facts = {"type": type(data).__name__, "batch_size": getattr(data, "batch_size", None)}
    if isinstance(data, DataLoader):
        seed = None if data.generator is None else data.generator.initial_seed()
        order = type(sampler(data)).__name__ if sampler(data) else "unknown"
        facts |= {"dataset": type(data.dataset).__name__, "order": order, "seed": seed}
    return facts


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        warnings.warn(message, CKAWarning, stacklevel=4)  # of who called compare
