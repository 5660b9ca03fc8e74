"""Models that do not fit together: each alone over the same batches, then all from disk."""

import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from fastcka.account import names
from fastcka.alone import Alone, Kept
from fastcka.checkpoint import Checkpoint, grams_of
from fastcka.data.loaders import Rewound, length
from fastcka.data.pairing import Paired
from fastcka.data.shuffling import unshuffled
from fastcka.distributed import Share
from fastcka.fingerprints import EXACT, FingerprintWriter, Measured, data_of, stored_bytes
from fastcka.gram_stack import GramStack
from fastcka.influence import Pair, as_pairs, check_layers
from fastcka.kernels.operations import operand_dtype
from fastcka.logbook import Logbook
from fastcka.measurement import measure
from fastcka.participant import Participant
from fastcka.streaming import MinibatchCKA
from fastcka.warning import CKAWarning

# What Gram matrices are made with; the other options say how they are compared.
STACKS = ("estimator", "gram", "bandwidth", "operand", "backend")


@dataclass(frozen=True)
class InTurn:
    """A model that runs when its turn comes, and may be made then.

    Attributes:
        layers: how many were asked for; 0 where that is not known before it is made.
    """

    label: str
    make: Callable[[], Participant]
    layers: int = 0


@contextmanager
def all_together(
    models: Sequence[InTurn | Measured], data: Iterable, *, checkpoint: Checkpoint | None
) -> Iterator[tuple[list[Participant | Measured], Iterable]]:
    """All models at once: who takes part in `measure`, and its data."""
    if checkpoint is not None and (folder := grams_of(checkpoint.path)).exists():
        raise ValueError(
            f"cannot resume: {folder} is of models that ran one by one; ask for `one_by_one`, or "
            "remove it"
        )
    yield [model.make() if isinstance(model, InTurn) else model for model in models], data


@contextmanager
def each_alone(
    models: Sequence[InTurn | Measured],
    data: Iterable,
    *,
    checkpoint: Checkpoint | None,
    ids: Callable | None,
    n: int | None,
    passes: int,
    progress: bool,
    many: bool,
    share: Share,
    influence: Sequence[tuple],
    pairs: Sequence[tuple] | None = None,
    **options,
) -> Iterator[tuple[list[Measured], Logbook]]:
    """The same, when every model has run alone, and what is left of it is on disk.

    That lies beside `checkpoint`, or without one in the folder for temporary files, and is gone
    when all was compared. `ids` names the images of a batch, as for `measure`, and those of stored
    models; `pairs` come later; `options` are those of `MinibatchCKA`.
    """
    in_turn = [model for model in models if isinstance(model, InTurn)]
    stored = [model for model in models if isinstance(model, Measured)]
    if len(in_turn) < 2:
        raise ValueError(
            f"`one_by_one` is for two models or more that run, but there is {len(in_turn)}"
        )
    MinibatchCKA(["any"], **options)  # checks them before any model runs
    influence = as_pairs(influence, [model.label for model in models], many)
    check_layers(influence, {model.label: model.layers for model in stored})
    loaders = (data.a, data.b) if isinstance(data, Paired) else (data,)
    if any(isinstance(loader, Iterator) for loader in loaders):
        raise ValueError(
            "`one_by_one` reads `data` once a model, but an iterator can be read once; give a list "
            "or a loader"
        )
    for message in dict.fromkeys(told for loader in loaders for told in unshuffled(loader)):
        warnings.warn(message, CKAWarning, stacklevel=4)  # of who called compare
    common = {name: options[name] for name in STACKS} | {"n": n, "passes": passes, "share": share}
    batches = length(loaders[0])
    here = None if batches is None else math.ceil(batches / share.ranks) * passes
    rewound, run, kept = Rewound(loaders), [], {}
    with _folder(checkpoint) as folder:
        for place, model in enumerate(in_turn):
            state = None
            if checkpoint is not None:
                state = Checkpoint(folder / f"{place}.state", True, checkpoint.every)
            data_file = None if state is None else data_of(state.path)
            behind = [other.layers for other in in_turn[place + 1 :]]
            with FingerprintWriter(folder / f"{place}.fp", EXACT, data_file) as writer:
                alone = Alone(
                    model.label,
                    writer,
                    first=run[0] if run else None,
                    stored=stored,
                    ids=ids,
                    names=None
                    if run or not influence
                    else partial(names, loaders=loaders, ids=ids),
                    check=_Check(model.label, influence, folder, here, behind),
                    read=checkpoint is not None and checkpoint.path.exists(),
                )
                bar = f"{model.label}, {place + 1} of {len(in_turn)}"
                course = {"checkpoint": state, "progress": progress and bar, **common}
                kept[model.label] = _run(model, alone, data, rewound, **course)
            run.append(alone)
        for model in stored:
            model.device = kept[in_turn[0].label].device
        notices = dict.fromkeys(told for alone in run for told in alone.account["notices"])
        logbook = Logbook(
            loaders,
            run[0].entries,
            run[0].division,
            run[0].account | {"notices": list(notices)},
            kept[run[0].label].images if stored else None,
        )
        yield [kept.get(model.label, model) for model in models], logbook
        for alone in run:
            alone.writer.path.unlink(missing_ok=True)


def _run(
    model: InTurn, alone: Alone, data: Iterable, rewound: Rewound, *, operand, **options
) -> Kept:
    """Measure one model; nothing that is returned holds on to it."""
    participant = model.make()  # before anything is rewound: it may draw its weights
    try:
        with rewound.again():
            result = measure(
                [participant], data, operand=operand, many=True, quiet=True, keep=alone, **options
            )
    except BaseException as error:
        # Of one model with itself, which nobody has asked for.
        vars(error).pop("partial", None)
        raise
    about = result[model.label, model.label].meta["models"]["a"]
    dtype = operand_dtype(operand)
    return Kept(participant, alone.writer.layers, alone.writer.path, dtype, about)


@contextmanager
def _folder(checkpoint: Checkpoint | None) -> Iterator[Path]:
    """Where the Gram matrices lie meanwhile."""
    if checkpoint is None:
        with TemporaryDirectory(prefix="fastcka-") as folder:
            yield Path(folder)
        return
    folder = grams_of(checkpoint.path)
    if checkpoint.path.exists() and not folder.exists():
        raise ValueError(
            f"cannot resume from {checkpoint.path}: there is no {folder} beside it, where models "
            "that run one by one leave what was measured; remove it, and begin anew"
        )
    folder.mkdir(exist_ok=True)
    yield folder


@dataclass(frozen=True)
class _Check:
    """What the Gram matrices of the first batch show: whether all that is to come will do.

    Attributes:
        label: of the model. influence: pairs of which it may have layers.
        folder: there. batches: of the data, that this process runs; None where that is not known.
        behind: numbers of layers of the models that come later, as far as they are known.
    """

    label: str
    influence: Sequence[Pair]
    folder: Path
    batches: int | None
    behind: Sequence[int]

    def __call__(self, stacks: Sequence[GramStack]) -> None:
        if not stacks:
            return
        check_layers(self.influence, {self.label: stacks[0].layers})
        if self.batches is None:
            return
        layers = [len(stacks[0].layers), *self.behind]
        sizes = [stack.n for stack in stacks]
        check_room(self.folder, self.batches * room(layers, sizes, stacks[0].estimator))


def check_room(folder: Path, need: int) -> None:
    """Refuse what will not fit on the disk.

    Raises:
        OSError: there are fewer bytes left than are needed.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            f"models that run one by one leave {need / 1e6:,.1f} MB in {folder}, where "
            f"{free / 1e6:,.1f} MB are free: make room, measure fewer images or layers or a "
            "smaller `n`, or name a `checkpoint` on a larger disk"
        )


def room(layers: Sequence[int], sizes: Sequence[int], estimator: str) -> int:
    """Bytes on disk of models with so many layers each, for CKA batches of so many images.

    The largest counts twice: it is copied when its file is put in its place.

    >>> round(room([12, 16], [64] * 1000, "unbiased") / 1e6)
    758
    """
    counts = [*layers, max(layers)]
    return sum(stored_bytes(count, n, estimator, EXACT) for count in counts for n in sizes)
