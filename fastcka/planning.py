"""What a comparison will take: its first batches are run, and the rest follows from them."""

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from fastcka import array_file
from fastcka.checkpoint import TENSOR
from fastcka.comparison import compare, compare_many
from fastcka.data.loaders import length
from fastcka.fingerprints import STORED, file_size
from fastcka.rehearsal import Rehearsal, Timed, total
from fastcka.result import CKAResult, CKAResults
from fastcka.stages import GRAM, MODELS, PRODUCTS, READING, told_to
from fastcka.warning import CKAWarning


@dataclass(frozen=True)
class Plan:
    """The time, memory and disk that a comparison will take, each by what takes it.

    Attributes:
        seconds: of the call, from its beginning to its result.
        memory: bytes of this process when it holds most, what it holds already included.
        gpu_memory: bytes of tensors on the GPU when they are most; empty where none is used.
        worker_memory: bytes of the batches that wait decoded in other processes, where there are.
        disk: bytes of files: of the state, where one is saved, and of the result's `save`.
        fingerprints: bytes of a fingerprint of each model on these images, by dtype of the file.
        layers: how many of each model.
        images, batches: of the data, in all passes. n: images of a CKA batch.
        whole: False where the data do not say how many they are: all is for `images` then, and the
            sums as they are when they are largest.
        measured: on what the times and the memory of activations rest: batches and images that were
            timed behind a first one; seconds a batch, on average, least and most; machine,
            device and threads.
    """

    seconds: dict[str, float]
    memory: dict[str, int]
    gpu_memory: dict[str, int]
    worker_memory: int
    disk: dict[str, int]
    fingerprints: dict[str, dict[str, int]]
    layers: dict[str, int]
    images: int
    batches: int
    n: int
    whole: bool
    measured: dict

    @property
    def dominates(self) -> dict[str, str]:
        """The largest part of the seconds, of each memory, and of the disk."""
        parts = {"seconds": self.seconds, "memory": self.memory, "gpu_memory": self.gpu_memory}
        return {
            name: max(of, key=of.get) for name, of in (parts | {"disk": self.disk}).items() if of
        }

    def to_dict(self) -> dict:
        """All of it as plain values, with the sums of the parts and what dominates."""
        totals = {name: sum(getattr(self, name).values()) for name in self.dominates}
        return asdict(self) | {"total": totals, "dominates": self.dominates}

    def __str__(self) -> str:
        seen = self.measured
        layers = ", ".join(f"{name}: {count} layers" for name, count in self.layers.items())
        per = "" if self.whole else "; the data do not say how many there are"
        lines = [
            layers,
            f"{self.images:,} images in {self.batches:,} batches, n = {self.n}{per}",
            f"measured on {seen['machine']}, {seen['device']}, {seen['threads']} threads: "
            f"{seen['batches']} batches, {_time(seen['seconds_a_batch'])} each "
            f"({_time(seen['least'])} to {_time(seen['most'])})",
        ]
        lines += _table("time", self.seconds, _time)
        lines += _table("memory of the process", self.memory, _bytes)
        lines += _table("memory of the GPU", self.gpu_memory, _bytes)
        if self.worker_memory:
            lines.append(f"beside it, decoded batches that wait: {_bytes(self.worker_memory)}")
        lines += _table("disk", self.disk, _bytes)
        for name, sizes in self.fingerprints.items():
            each = ", ".join(f"{_bytes(size)} in {dtype}" for dtype, size in sizes.items())
            lines.append(f"a fingerprint of {name} would be {each}")
        return "\n".join(lines)


def plan(run: Callable, /, *arguments, **options) -> Plan:
    """What a call of `compare` or `compare_many` will take, before it is made.

    The first batches are run as the call would run them: one to warm up, then three or more, for
    two seconds or more. Times and memory are measured on them, on this machine as it is now, and
    taken to all batches; what follows from numbers of layers and images alone, as the sizes of
    files, is counted. Nothing is written, and the data are read from the start by the call itself.

    Args:
        run: `fastcka.compare` or `fastcka.compare_many`.
        arguments, options: its own. A `checkpoint` is planned for, but not written; without, no
            state is. Of `fastcka.fingerprint`, plan `compare` of the one model: it takes the same,
            and the size of its file is in `fingerprints`.

    Returns:
        `Plan`; printed, it is a table.

    Raises:
        TypeError: `run` is another function.
        ValueError: the data can be read once only, or the call is `distributed`: each process takes
            what one does, and its share of the time; or it is `one_by_one`, of several runs.
        RuntimeError: the system does not tell the memory of a process.
        As `run`: what it refuses, it refuses here.

    Where processes decode images, some more batches than they decode ahead are read and not run. A
    loader that draws its order from a generator of its own will give another one afterwards.

    >>> import fastcka, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
    >>> found = fastcka.plan(fastcka.compare, net, data=torch.randn(4000, 8).split(50))
    >>> found.images, found.layers, sum(found.fingerprints["Sequential"].values()) > 4000 * 300
    (4000, {'Sequential': 2}, True)
    """
    if run not in (compare, compare_many):
        name = getattr(run, "__name__", type(run).__name__)
        raise TypeError(
            f"`run` must be fastcka.compare or fastcka.compare_many, but is {name}: give the "
            "function itself, and behind it what it is called with"
        )
    if options.get("one_by_one"):
        raise ValueError(
            "a plan is of models that run together: leave `one_by_one` out; of models that do not "
            "fit together, plan each alone, with itself"
        )
    return rehearsed(lambda: run(*arguments, **options))[0]


def rehearsed(
    call: Callable[[], CKAResult | CKAResults],
) -> tuple[Plan, CKAResult | CKAResults]:
    """The plan of a function that makes one comparison, and its result of the first batches.

    The result has the layers, and so the sizes, of that of all batches.
    """
    seen = Rehearsal()
    # Of the first batches; those of the whole are told when it runs.
    with warnings.catch_warnings(), told_to(seen), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", CKAWarning)
        result = call()
    return _plan(seen, result, time.perf_counter() - seen.ended), result


def _plan(seen: Rehearsal, result: CKAResult | CKAResults, ending: float) -> Plan:
    passes, sizes, parts = seen.course.passes, seen.sizes(), seen.parts()
    images, blocks = passes * sum(sizes), seen.blocks()
    first = next(iter(result.values())) if isinstance(result, CKAResults) else result
    timed = seen.timed or [seen.first]
    each = sorted(total(one) / one.images * sizes[0] for one in timed)
    facts = _models(result)
    names = {label: model["name"] for label, model in facts.items()}
    if len(set(names.values())) < len(names):  # two of one architecture
        names = {label: f"{name} ({label})" for label, name in names.items()}
    state = _state_size(seen, blocks)
    memory, gpu = _memory(seen, result, first.meta["n_blocks"], blocks, state)
    return Plan(
        seconds=_seconds(seen, images, ending * blocks / first.meta["n_blocks"]),
        memory=memory,
        gpu_memory=gpu,
        worker_memory=seen.waiting * seen.images["cpu"],
        disk=({"state": state} if seen.state else {}) | {"result": result.file_size()},
        fingerprints={
            names[p.label]: _fingerprint_sizes(seen, p.label, parts, first, facts[p.label])
            for p in seen.models
        },
        layers={names[label]: len(of) for label, of in seen.accumulator.layers.items()},
        images=images,
        batches=passes * len(sizes),
        n=parts[0],
        whole=length(seen.course.loaders[0]) is not None,
        measured={
            "batches": len(timed),
            "images": sum(one.images for one in timed),
            "seconds_a_batch": sum(map(total, timed)) / sum(t.images for t in timed) * sizes[0],
            "least": each[0],
            "most": each[-1],
            "machine": first.meta["processor"],
            "device": first.meta["device"],
            "threads": first.meta["threads"],
        },
    )


def _seconds(seen: Rehearsal, images: int, ending: float) -> dict[str, float]:
    timed: list[Timed] = seen.timed or [seen.first]
    count = sum(one.images for one in timed)
    an_image = {
        stage: sum(one.seconds[stage] for one in timed) / count
        for stage in (READING, MODELS, GRAM, PRODUCTS)
    }
    # Where other processes decode, what they take beyond the time of all else is waited for.
    late = seen.unread - sum(an_image.values())
    an_image[READING] += max(0.0, late)
    usual = sum(an_image.values()) * seen.first.images
    ends = seen.before + max(0.0, total(seen.first) - usual) + ending
    return {stage: value * images for stage, value in an_image.items()} | {"start and end": ends}


def _memory(
    seen: Rehearsal, result: CKAResult | CKAResults, blocks_now: int, blocks: int, state: int
) -> tuple[dict[str, int], dict[str, int]]:
    """By what takes it, of the process and of the GPU, each when it holds most."""
    sums = Counter({"cuda" if seen.cuda else "cpu": _sums_size(seen, blocks)})
    grown = sums - Counter({"cuda" if seen.cuda else "cpu": _sums_size(seen, blocks_now)})
    running = max(seen.peaks.values()) + grown["cpu"]
    # Saving stacks the blocks and holds the file twice; a result's file is held twice as well.
    saving = sums.total() + 2 * state if state else 0
    ending = seen.between + grown["cpu"] + max(saving, 2 * result.file_size())
    work = "products" if seen.peaks[PRODUCTS] > seen.peaks[MODELS] else "activations"

    def parts(kind: str) -> dict[str, int]:
        return {
            "models": seen.weights[kind],
            "images": seen.images[kind],
            "Gram matrices": seen.stacks[kind],
            "sums": sums[kind],
        }

    before = seen.resident - seen.weights["cpu"]
    held = parts("cpu")
    held[work] = max(0, running - before - sum(held.values()))
    held["saving"] = max(0, ending - running)
    memory = {"process before": max(running, ending) - sum(held.values())} | held
    if not seen.cuda:
        return memory, {}
    held = parts("cuda")
    return memory, held | {"activations": max(0, seen.on_cuda + grown["cuda"] - sum(held.values()))}


def _sums_size(seen: Rehearsal, blocks: int) -> int:
    """Of the sums over so many blocks."""
    return sum(8 * math.prod(shape) for shape in seen.accumulator.state_shapes(blocks).values())


def _state_size(seen: Rehearsal, blocks: int) -> int:
    """Of the file, with as many digits in its numbers as there are now."""
    if not seen.state:
        return 0
    plain, tensors = seen.state
    # The digest of all batches is there from the end of the first pass on.
    course = plain["course"] | {"seen": plain["course"]["behind"]}
    shapes = seen.accumulator.state_shapes(blocks)
    arrays = {TENSOR + name: array_file.shaped(shapes[name]) for name in tensors}
    return array_file.size("state", [{**plain, "course": course, **arrays}])


def _fingerprint_sizes(
    seen: Rehearsal, label: str, parts: list[int], result: CKAResult, model: Mapping
) -> dict[str, int]:
    meta = {key: value for key, value in result.meta.items() if key != "models"}
    accumulator = seen.accumulator
    options = {"model": model, "meta": meta, "warnings": ()} | accumulator.stack_options
    return {
        dtype: file_size(accumulator.layers[label], parts, dtype, **options) for dtype in STORED
    }


def _models(result: CKAResult | CKAResults) -> dict[str, dict]:
    """What the result says of each model, by label."""
    if isinstance(result, CKAResult):
        return result.meta["models"]  # "a" and "b" are the labels too
    return {a: one.meta["models"]["a"] for (a, b), one in result.items() if a == b}


def _table(name: str, parts: Mapping, written: Callable) -> list[str]:
    """A line for the whole, and one for each part that there is."""
    whole = sum(parts.values())
    if not whole:
        return []
    most = max(parts, key=parts.get)
    lines = [f"{name}: {written(whole)}, {parts[most] / whole:.0%} of it {most}"]
    wide = max(map(len, parts))
    return lines + [f"  {part:<{wide}}  {written(of):>9}" for part, of in parts.items() if of]


def _bytes(count: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
    return f"{count / 1000**power:.4g} {units[power]}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
