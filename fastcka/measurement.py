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
from fastcka.gram_stack import GramStack
from fastcka.influence import as_pairs
from fastcka.interrupts import Interrupts
from fastcka.keeping import Keeper
from fastcka.options import check_whole_number
from fastcka.participant import Inputs, Participant, autocast_name
from fastcka.result import CKAResult, CKAResults
from fastcka.stages import GRAM, MODELS, PRODUCTS, READING, Stages, stages
from fastcka.streaming import SMALLEST_BATCH, MinibatchCKA
from fastcka.warning import CKAWarning

# Of what a checkpoint holds; another one is not resumed.
SCHEMA = 3


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
    **options,
) -> CKAResult | CKAResults:
    """Run the models over the data; `options` are those of `MinibatchCKA`.

    `keep` takes the Gram matrices of each batch; with `quiet`, what is told is in the result alone.
    `ids` names the images of a batch, for `influence`.
    """
    if n is not None:
        check_whole_number("n", n, SMALLEST_BATCH)
    check_whole_number("passes", passes, 1)
    now = stages()
    sums = _Sums(participants, many, options, influence, now)
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
        now: Stages,
    ):
        self.participants, self.many = participants, many
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
        self.notices: list[str] = []

    def identity(self) -> dict:
        """The options, whatever way they were written."""
        config = self._any.state_dict()["config"]
        known = {name: config[name] for name in config if name not in ("layers", "pairs", "schema")}
        influence = array_file.plain(self._influence, "influence")
        return known | {"backend": self._any.backend, "influence": influence}

    def inputs(self, batch) -> dict[str, Inputs]:
        return {p.label: p.inputs(batch) for p in self.participants}

    def examples(self, batch) -> int:
        return _common_size(self.inputs(batch))

    def stacks(
        self, batch, inputs: Mapping[str, Inputs], parts: list[slice], number: int
    ) -> list[dict[str, GramStack] | None]:
        """Run the models on batch `number`: its Gram matrices, of each part; None if too small."""
        large = [part for part in parts if _size(part) >= SMALLEST_BATCH]
        if not large:
            return [None] * len(parts)
        filled = {
            p.label: self._stacks(p, batch, inputs[p.label], large, number)
            for p in self.participants
        }
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

    def _stacks(
        self, participant: Participant, batch, inputs: Inputs, parts: list[slice], number: int
    ) -> list[GramStack]:
        """The filled stacks of one model, one for each part of a batch."""
        label = participant.label
        if isinstance(participant, Measured):
            self._now.begin(READING)
            return participant.stacks(inputs, parts, number)
        if label not in self._devices:
            return self._first_stacks(participant, batch, inputs, parts, number)
        places = {layer: row for row, layer in enumerate(participant.capture.layers)}
        stacks = [
            self.accumulator.stack(label, _size(part), self._devices[label]) for part in parts
        ]

        def put(part: int, layer: str, x: torch.Tensor) -> None:
            stacks[part].put(places[layer], x)

        self._run(participant, batch, inputs, parts, number, put)
        return stacks

    def _run(
        self,
        participant: Participant,
        batch,
        inputs: Inputs,
        parts: list[slice],
        number: int,
        put: Callable[[int, str, torch.Tensor], None],
    ) -> None:
        """One forward pass for all parts, or several where the memory does not hold them all."""
        self._now.begin(MODELS)
        while True:
            step = min(self._together.get(participant.label, len(parts)), len(parts))
            try:
                for first in range(0, len(parts), step):
                    group = parts[first : first + step]
                    begin = group[0].start
                    some = inputs if step == len(parts) else inputs.part(begin, group[-1].stop)

                    def sink(layer, x, group=group, first=first, begin=begin):
                        self._now.begin(GRAM)
                        for place, part in enumerate(group, first):
                            put(place, layer, x[part.start - begin : part.stop - begin])
                        self._now.begin(MODELS)

                    participant.run(some, number, sink)
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

    def _first_stacks(
        self, participant: Participant, batch, inputs: Inputs, parts: list[slice], number: int
    ) -> list[GramStack]:
        """The same while the layers are not known: a stack each, joined when they are."""
        rows: list[dict[str, GramStack]] = [{} for _ in parts]

        def put(part: int, layer: str, x: torch.Tensor) -> None:
            one = GramStack([layer], _size(parts[part]), device=x.device, **self.stack_options)
            one.put(0, x)
            rows[part][layer] = one

        self._run(participant, batch, inputs, parts, number, put)
        layers = participant.capture.layers
        if self.accumulator is not None and self.accumulator.layers[participant.label] != layers:
            raise ValueError(
                f"cannot resume: the layers of model {participant.label!r} are {few(layers)} now, "
                f"and were {few(self.accumulator.layers[participant.label])} there"
            )
        stacks = [GramStack.joined([row.pop(layer) for layer in layers]) for row in rows]
        self._devices[participant.label] = stacks[0].packed.device
        return stacks

    def _accumulator(self, layers: Mapping[str, Sequence[str]]) -> MinibatchCKA:
        if self.many:
            return MinibatchCKA(layers, **self.options)
        return MinibatchCKA(layers["a"], layers.get("b"), **self.options)

    def state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Plain values and tensors; `load` takes them."""
        plain = {"left_out": self.left_out, "config": None, "counts": None}
        if self.accumulator is None:
            return plain, {}
        state = self.accumulator.state_dict()
        tensors = state.pop("tensors")
        return plain | state, tensors

    def load(self, states: Iterable[tuple[dict, dict[str, torch.Tensor]]]) -> None:
        """Take the sums of one or more states instead of those here."""
        self.accumulator, self.left_out = None, []
        for plain, tensors in states:
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
