"""Any number of models over the batches of the data: the engine of a comparison."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from fastcka import array_file
from fastcka.account import Account
from fastcka.capture.matching import few
from fastcka.checkpoint import Checkpoint, difference
from fastcka.course import Course
from fastcka.distributed import Share
from fastcka.fingerprints import Measured
from fastcka.gram_queue import GramQueue
from fastcka.gram_stack import GramStack
from fastcka.influence import as_pairs
from fastcka.interrupts import Interrupts
from fastcka.keeping import Keeper
from fastcka.named_sums import named
from fastcka.observations import Observations, Seen
from fastcka.options import check_whole_number
from fastcka.participant import Entered, Inputs, Participant, autocast_name
from fastcka.result import CKAResult, CKAResults
from fastcka.stages import GRAM, MODELS, PRODUCTS, READING, Stages, stages
from fastcka.streaming import SMALLEST_BATCH, MinibatchCKA
from fastcka.warning import CKAWarning

# Of what a checkpoint holds; another one is not resumed.
SCHEMA = 4
OBSERVED = "observed."  # tensors within a state begin so


def measure(
    participants: list[Participant],
    data: Iterable,
    *,
    n: int | None,
    passes: int,
    progress: bool | str,
    many: bool,
    checkpoint: Checkpoint | None,
    share: Share,
    keep: Keeper | None = None,
    quiet: bool = False,
    influence: Sequence[tuple] = (),
    ids: Callable | None = None,
    pairs: list[tuple[str, str]] | None = None,
    observations: Observations | None = None,
    **options,
) -> CKAResult | CKAResults:
    """Run the models over the data; `options` are those of `MinibatchCKA`.

    Participants with one and the same network share its forward passes. `keep` takes the Gram
    matrices of each batch; with `quiet`, what is told is in the result alone. `ids` names the
    images of a batch, for `influence`. `pairs` of models alone are compared; `observations` watch
    the models of their labels.
    """
    if n is not None:
        check_whole_number("n", n, SMALLEST_BATCH)
    check_whole_number("passes", passes, 1)
    now = stages()
    observations = observations or Observations({})
    sums = _Sums(participants, many, options, influence, pairs, now, observations)
    course = Course(data, n, passes, share, watched=checkpoint is not None or share.ranks > 1)
    account = Account(participants, course, ids)
    state = _State(participants, course, account, sums, None if now.rehearsal else checkpoint, keep)
    _warn([] if quiet else account.before)
    with Interrupts() as interrupts:
        try:
            state.begin()
            with ExitStack() as stack:
                for participant in [] if state.finished else participants:
                    stack.enter_context(participant.ready())
                now.start(participants, course)
                shown = progress and not now.rehearsal
                for turn, number, batch in now.some(state.batches(shown)):
                    inputs = sums.inputs(batch)
                    parts = course.slices(_common_size(inputs))
                    kept = keep and keep.images((turn, number), batch, parts[-1].stop)
                    stacks = sums.stacks(batch, inputs, parts, number)
                    now.hold(batch, inputs, stacks)
                    images = account.names(batch, parts[-1].stop) if influence else None
                    now.begin(PRODUCTS)
                    with interrupts.after():
                        if keep is not None:
                            keep.add(kept, parts, stacks)
                        with state.changing():
                            index = partial(course.index, number)
                            sums.add(parts, stacks, index, again=turn > 0, images=images)
                            account.see(batch, parts)
                            course.done(turn, number)
                    for notice in sums.notices:
                        account.note(notice)
                    state.save_if_due()
            now.end(sums.accumulator, state.record if course.watched else None)
            with interrupts.after():
                state.save()
            state.gather()
        except BaseException as error:
            with interrupts.after(heed=False):  # we are ending already
                _keep(error, state, sums, account, many)
            raise
    results = account.explain(sums.results())
    if keep is not None:
        keep.finish(next(iter(results.values())), account.state(), course.division)
    told = dict.fromkeys(told for each in results.values() for told in each.warnings)
    _warn([] if quiet else [message for message in told if message not in account.before])
    return _returned(results, many)


def _keep(
    error: BaseException, state: "_State", sums: "_Sums", account: Account, many: bool
) -> None:
    """What was measured until an error: hours may be behind us."""
    if sums.accumulator is None or not sums.accumulator.n_batches:
        return
    try:
        state.save()
    except Exception as failure:  # the first error is the one to be told
        error.add_note(f"the state could not be saved: {failure}")
    error.partial = _returned(account.explain(sums.results()), many)


def _returned(results: dict[tuple[str, ...], CKAResult], many: bool) -> CKAResult | CKAResults:
    return CKAResults(results) if many else next(iter(results.values()))


class _State:
    """All of a comparison that a checkpoint keeps, and that processes exchange."""

    def __init__(
        self,
        participants: list[Participant],
        course: Course,
        account: Account,
        sums: "_Sums",
        checkpoint: Checkpoint | None,
        keep: Keeper | None,
    ):
        self.participants, self.course, self.account = participants, course, account
        self.sums, self.checkpoint, self.keep = sums, checkpoint, keep
        self._identity: dict = {}
        self._whole = True  # False where an error came in the middle of adding up

    def begin(self) -> None:
        """See that all processes compare the same, and go on from what was saved."""
        if not self.course.watched:
            return
        share = self.course.share
        if share.ranks > 1:
            self.course.check_shared()
        models = {p.label: p.identity() for p in self.participants}
        # Last: of networks and images that differ by a seed, the seed is named.
        weights = {label: facts.pop("weights", None) for label, facts in models.items()}
        self._identity = {
            "schema": SCHEMA,
            "models": models,
            **self.account.identity(),
            **self.sums.identity(),
            "n": self.course.n,
            "passes": self.course.passes,
            "autocast": autocast_name(self.participants),
            "processes": share.ranks,
            "kept": self.keep and self.keep.identity(),
            "weights": weights,
        }
        for rank, theirs in enumerate(share.everyone(self._identity)):
            if found := difference(self._identity, theirs):
                name, one, other = found
                raise ValueError(
                    f"all processes must compare the same, but `{name}` is {one} in process "
                    f"{share.rank} and {other} in process {rank}"
                )
        self._identity["process"] = share.rank
        if self.checkpoint is not None:
            self._resume(self.checkpoint)

    def _resume(self, checkpoint: Checkpoint) -> None:
        found = checkpoint.load()
        if found is None:
            return
        plain, tensors = found
        with array_file.understood(checkpoint.path):
            if different := difference(self._identity, plain["identity"]):
                name, now, then = different
                raise ValueError(
                    f"cannot resume from {checkpoint.path}: `{name}` is {now} now, and was {then} "
                    "there"
                )
            with self.changing():
                if self.keep is not None:
                    self.keep.load(plain["kept"])
                self.sums.load([(plain["sums"], tensors)])
                self.course.load(plain["course"])
                self.account.merge(plain["account"])
                self.account.resumed(plain["sums"]["counts"])

    @property
    def finished(self) -> bool:
        """Whether all that is kept is there already."""
        return self.keep is not None and self.keep.finished

    def batches(self, progress: bool | str) -> Iterator[tuple[int, int, object]]:
        """Those that are to be run."""
        if not self.finished:
            yield from self.course.batches(self.sums.examples, progress)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around what belongs together: after an error within, nothing is saved."""
        self._whole = False
        yield
        self._whole = True

    def save_if_due(self) -> None:
        if self.checkpoint is not None and self.checkpoint.due():
            self.save()

    def save(self) -> None:
        """Save what was measured; not where an error came in the middle of adding up."""
        if self.checkpoint is None or self.sums.accumulator is None or not self._whole:
            return
        self.checkpoint.save(*self.record())

    def record(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Plain values and tensors: what is saved."""
        sums, tensors = self.sums.state()
        plain = {
            "identity": self._identity,
            "course": self.course.state(),
            "account": self.account.state(),
            "sums": sums,
            "kept": self.keep and self.keep.state(),
        }
        return plain, tensors

    def gather(self) -> None:
        """Add up what all processes have; afterwards each has all of it."""
        share = self.course.share
        if share.ranks == 1:
            return
        self.checkpoint = None  # it holds this process's own; from here on there is more
        own = (self.course.seen(), self.account.state(), self.sums.state())
        everyone = share.everyone(own)
        if len({seen for seen, *_ in everyone}) > 1:
            raise ValueError(
                "the processes were given different batches: each must be given all of them, in "
                "the same order; they are dealt out here"
            )
        for rank, (_, account, _) in enumerate(everyone):
            if rank != share.rank:
                self.account.merge(account)
        self.sums.load([sums for *_, sums in everyone])


class _Sums:
    """The accumulator of a comparison, made when the first batch has shown the layers."""

    def __init__(
        self,
        participants: list[Participant],
        many: bool,
        options: dict,
        influence: Sequence[tuple],
        pairs: list[tuple[str, str]] | None,
        now: Stages,
        observations: Observations,
    ):
        self.participants, self.many, self._pairs = participants, many, pairs
        self.observations = observations
        self._seen: Seen = {}  # of the batch that was run last
        self._groups: list[list[Participant]] = []  # that share a forward pass
        for participant in participants:
            mates = [g for g in self._groups if participant.runs_with(g[0])]
            if mates:
                mates[0].append(participant)
            else:
                self._groups.append([participant])
        self.options = options | {"influence": influence}
        self._now = now
        # Names no layer, but checks the options before any model runs.
        self._any = MinibatchCKA(["any"], **options)
        self._influence = as_pairs(influence, [p.label for p in participants], many)
        self.stack_options = self._any.stack_options
        self.accumulator: MinibatchCKA | None = None
        self.left_out: list[int] = []  # sizes of the parts that are too small
        self._devices: dict[str, torch.device] = {}  # where the activations of a model are
        self._together: dict[str, int] = {}  # CKA batches that a model can run at once
        self._queues = {participant.label: GramQueue() for participant in participants}
        self.notices: list[str] = []

    def identity(self) -> dict:
        """The options, whatever way they were written."""
        config = self._any.state_dict()["config"]
        known = {name: config[name] for name in config if name not in ("layers", "pairs", "schema")}
        influence = array_file.plain(self._influence, "influence")
        return known | {
            "backend": self._any.backend,
            "influence": influence,
            "pairs": array_file.plain(self._pairs, "pairs"),
            "observed": self.observations.names(),
        }

    def inputs(self, batch) -> dict[str, Inputs]:
        """What each model is called with, by its label; those that run together share it."""
        found = {}
        for group in self._groups:
            given = group[0].inputs(batch)
            found |= {participant.label: given for participant in group}
        return found

    def examples(self, batch) -> int:
        return _common_size(self.inputs(batch))

    def stacks(
        self, batch, inputs: Mapping[str, Inputs], parts: list[slice], number: int
    ) -> list[dict[str, GramStack] | None]:
        """Run the models on batch `number`: its Gram matrices, of each part; None if too small."""
        large = [part for part in parts if _size(part) >= SMALLEST_BATCH]
        self._seen = {}
        if not large:
            return [None] * len(parts)
        filled = {}
        for group in self._groups:
            filled |= self._stacks(group, batch, inputs[group[0].label], large, number)
        if self.accumulator is None:
            self.accumulator = self._accumulator(
                {p.label: p.capture.layers for p in self.participants}
            )
        return [
            {label: stacks[large.index(part)] for label, stacks in filled.items()}
            if part in large
            else None
            for part in parts
        ]

    def add(
        self,
        parts: list[slice],
        stacks: list[dict[str, GramStack] | None],
        index: Callable[[int], int],
        again: bool = False,
        images: Sequence[str | int] | None = None,
    ) -> None:
        """Add the parts of a batch, a CKA batch each, each under the index of its place."""
        for place, (part, filled) in enumerate(zip(parts, stacks, strict=True)):
            if filled is None:
                self.left_out.append(_size(part))
            else:
                named = None if images is None else images[part]
                self.accumulator.add(filled, index=index(place), again=again, images=named)
        if not again:
            self.observations.add(self._seen)

    def _stacks(
        self, group: list[Participant], batch, inputs: Inputs, parts: list[slice], number: int
    ) -> dict[str, list[GramStack]]:
        """Of each model of a group its filled stacks, one for each part of a batch."""
        if isinstance(group[0], Measured):
            self._now.begin(READING)
            (stored,) = group
            return {stored.label: stored.stacks(inputs, parts, number)}
        first = group[0].label not in self._devices
        filling = {p.label: (_Unknown if first else _Known)(self, p, parts) for p in group}
        self._run(group, batch, inputs, parts, number, filling)
        return {label: one.stacks() for label, one in filling.items()}

    def _run(
        self,
        group: list[Participant],
        batch,
        inputs: Inputs,
        parts: list[slice],
        number: int,
        filling: Mapping[str, "_Known | _Unknown"],
    ) -> None:
        """One forward pass for all parts, or several where the memory does not hold them all."""
        self._now.begin(MODELS)
        participant, *others = group
        while True:
            for label in filling:
                self._queues[label].clear()
            step = min(self._together.get(participant.label, len(parts)), len(parts))
            seen: list[Seen] = []
            try:
                for first in range(0, len(parts), step):
                    some = parts[first : first + step]
                    given = (
                        inputs if step == len(parts) else inputs.part(some[0].start, some[-1].stop)
                    )
                    sinks = {label: self._sink(one, first, some) for label, one in filling.items()}
                    beside = [p.capture.watching(given.n, sinks[p.label]) for p in others]
                    observed = {}
                    for p in group:
                        observed |= self.observations.watching(p.label, p.capture.model, given.n)
                    values = {key: Entered(one) for key, one in observed.items()}
                    participant.run(
                        given, number, sinks[participant.label], [*beside, *values.values()]
                    )
                    self._now.begin(GRAM)
                    for label in filling:
                        self._queues[label].empty()
                    self._now.begin(MODELS)
                    seen.append({key: one.value for key, one in values.items()})
                self._seen |= _together(seen)
                return
            except torch.OutOfMemoryError as error:
                if not inputs.divisible:
                    error.add_note(f"model {participant.label!r} is given lists, not cut in halves")
                    raise
                if step == 1:
                    error.add_note(
                        f"{_size(parts[0])} images are one CKA batch and cannot be divided: give a "
                        "smaller `n`"
                    )
                    raise
            self._together[participant.label] = -(-step // 2)
            torch.cuda.empty_cache()
            inputs = participant.inputs(batch)  # the network may have written to them
            self.notices.append(
                f"model {participant.label!r} ran out of memory with {inputs.n} images: from batch "
                f"{number} on it is given {-(-step // 2) * _size(parts[0])} at a time"
            )

    def _sink(self, filling: "_Known | _Unknown", first: int, parts: list[slice]):
        """Puts an activation of some of the parts, from number `first` on, where it belongs."""
        begin = parts[0].start

        def sink(layer: str, x: torch.Tensor) -> None:
            self._now.begin(GRAM)
            for place, part in enumerate(parts, first):
                filling.put(place, layer, x[part.start - begin : part.stop - begin])
            filling.passed(layer, x)
            self._now.begin(MODELS)

        return sink

    def _accumulator(self, layers: Mapping[str, Sequence[str]]) -> MinibatchCKA:
        if self.many:
            return MinibatchCKA(layers, pairs=self._pairs, **self.options)
        return MinibatchCKA(layers["a"], layers.get("b"), **self.options)

    def state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Plain values and tensors; `load` takes them."""
        observed, tensors = self.observations.state()
        plain = {
            "left_out": self.left_out,
            "config": None,
            "counts": None,
            "observed": observed,
        }
        tensors = {f"{OBSERVED}{name}": value for name, value in tensors.items()}
        if self.accumulator is None:
            return plain, tensors
        state = self.accumulator.state_dict()
        tensors |= state.pop("tensors")
        return plain | state, tensors

    def load(self, states: Iterable[tuple[dict, dict[str, torch.Tensor]]]) -> None:
        """Take the sums of one or more states instead of those here."""
        self.accumulator, self.left_out = None, []
        for number, (plain, tensors) in enumerate(states):
            observed = named(tensors, OBSERVED)
            (self.observations.merge if number else self.observations.load)(
                plain["observed"], observed
            )
            tensors = {name: tensors[name] for name in tensors if not name.startswith(OBSERVED)}
            self.left_out += plain["left_out"]
            if plain["config"] is None:  # no batch came to this process
                continue
            one = self._accumulator(plain["config"]["layers"])
            one.load_state_dict(plain | {"tensors": tensors})
            self.accumulator = one if self.accumulator is None else self.accumulator.merge(one)

    def results(self) -> dict[tuple[str, ...], CKAResult]:
        """The results of all pairs, by the labels of the models."""
        accumulator = self.accumulator
        if accumulator is None:
            accumulator = self._any  # says that there is nothing
        accumulator = copy.copy(accumulator)  # more may follow
        for size in self.left_out:
            accumulator.skip(size)
        with warnings.catch_warnings():  # they are told once, with what the hooks have seen
            warnings.simplefilter("ignore", CKAWarning)
            computed = accumulator.compute()
        return dict(computed) if self.many else {tuple(accumulator.layers): computed}


class _Known:
    """The stacks of a model whose layers are known, one for each part of a batch."""

    def __init__(self, sums: _Sums, participant: Participant, parts: list[slice]):
        label = participant.label
        self._queue = sums._queues[label]
        self._places = {layer: row for row, layer in enumerate(participant.capture.layers)}
        self._stacks = [
            sums.accumulator.stack(label, _size(part), sums._devices[label]) for part in parts
        ]

    def put(self, part: int, layer: str, x: torch.Tensor) -> None:
        self._queue.put(self._stacks[part], self._places[layer], x)

    def passed(self, layer: str, x: torch.Tensor) -> None:
        self._queue.passed(layer)

    def stacks(self) -> list[GramStack]:
        return self._stacks


class _Unknown:
    """The same while the layers are not known: a stack each, joined when they are."""

    def __init__(self, sums: _Sums, participant: Participant, parts: list[slice]):
        self._sums, self._participant, self._parts = sums, participant, parts
        self._rows: list[dict[str, GramStack]] = [{} for _ in parts]

    def put(self, part: int, layer: str, x: torch.Tensor) -> None:
        options = self._sums.stack_options
        one = GramStack([layer], _size(self._parts[part]), device=x.device, **options)
        one.put(0, x)
        self._rows[part][layer] = one

    def passed(self, layer: str, x: torch.Tensor) -> None:
        backend = self._sums.stack_options["backend"]
        self._sums._queues[self._participant.label].try_out(layer, x, backend)

    def stacks(self) -> list[GramStack]:
        label, layers = self._participant.label, self._participant.capture.layers
        accumulator = self._sums.accumulator
        if accumulator is not None and accumulator.layers[label] != layers:
            raise ValueError(
                f"cannot resume: the layers of model {label!r} are {few(layers)} now, "
                f"and were {few(accumulator.layers[label])} there"
            )
        stacks = [GramStack.joined([row.pop(layer) for layer in layers]) for row in self._rows]
        self._sums._devices[label] = stacks[0].packed.device
        return stacks


def _together(seen: list[Seen]) -> Seen:
    """The values of all images of a batch, of which some came after the others."""
    if len(seen) == 1:
        return seen[0]
    return {
        key: {name: torch.cat([one[key][name] for one in seen]) for name in values}
        for key, values in seen[0].items()
    }


def _size(part: slice) -> int:
    return part.stop - part.start


def _common_size(inputs: Mapping[str, Inputs]) -> int:
    sizes = {label: given.n for label, given in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the models were given different numbers of examples: {sizes}")
    return next(iter(sizes.values()))


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        warnings.warn(message, CKAWarning, stacklevel=4)  # of who called compare
