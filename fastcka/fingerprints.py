"""What is left of a model on named images: its centred Gram matrices on disk, without its weights.

A safetensors file, read by memory map. Of CKA batch b, with L layers and n images:

    b.packed    [L, m] float32 or float16, each layer divided by b.scale, or float64, which is not
    b.scale     [L] float64
    b.diagonal  [L, n] float64       b.row_sums [L, n] float64       b.summary  [L, 5] float64
    b.images    [n] int64: which images, in their order

The header holds a SHA-256 of every batch, checked when it is read, and one of itself.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import BinaryIO

import torch

from fastcka import array_file
from fastcka.conditioning import CENTRED
from fastcka.gram_stack import GramStack
from fastcka.kernels import packed_length
from fastcka.options import check_choice
from fastcka.participant import Inputs
from fastcka.trail import value_bytes

SUFFIX = ".fp"
# CKA batches of a file: a header has 100 MB at most in safetensors, and a batch takes 700 bytes.
MOST = 130_000
# As they were computed: what is compared from disk has the bits of what was not.
EXACT = "fp64"
STORED = {"fp32": torch.float32, "fp16": torch.float16, EXACT: torch.float64}
# Of types, as safetensors has them.
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
PARTS = ("packed", "scale", "diagonal", "row_sums", "summary", "images")


def image_numbers(ids: Iterable) -> torch.Tensor:
    """Names of images as int64: whole numbers as they are, all else by their SHA-256.

    >>> image_numbers([3, 4]), len(image_numbers(["a.jpg", "b.jpg"]))
    (tensor([3, 4]), 2)
    """
    if isinstance(ids, torch.Tensor):
        ids = ids.tolist()
    numbers = []
    for one in ids:
        if isinstance(one, Integral):
            numbers.append(int(one))
        else:
            digest = hashlib.sha256(str(one).encode()).digest()
            numbers.append(int.from_bytes(digest[:8], "little", signed=True))
    return torch.tensor(numbers, dtype=torch.int64)


def images_of(batch, ids: Callable | None) -> torch.Tensor:
    """Which images a batch holds: what `ids` says, or the hashes of the files of `ImageBatches`."""
    if ids is not None:
        return image_numbers(ids(batch))
    if isinstance(batch, Mapping) and "file" in batch:
        return image_numbers(batch["file"])
    raise ValueError(
        "a fingerprint is of named images, and the batches do not say which: give `ids`, a "
        "function from a batch to a name or number of each image, or use fastcka.data.ImageBatches"
    )


def data_of(state: Path) -> Path:
    """Where the batches lie, as long as there is this state of a fingerprint in the making."""
    return state.with_name(f"{state.name}.data")


class FingerprintWriter:
    """Writes batches to disk as they come; the file appears, whole, when all is there.

    Args:
        path: of the file. dtype: "fp32", "fp16" or "fp64", of the packed matrices.
        data: where the batches are until then. One that is named stays after an error, for `load`
            to go on behind what it holds; None is one that does not.

    Attributes:
        finished: whether the file is there, and was when this began.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        dtype: str = "fp32",
        data: str | os.PathLike | None = None,
    ):
        check_choice("dtype", dtype, tuple(STORED))
        self.path, self.dtype, self.finished = Path(path), dtype, False
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {path}: its folder does not exist, create it first"
            )
        self._stays = data is not None
        unnamed = self.path.with_name(f".{self.path.name}.{os.getpid()}.data")
        self._data = Path(data) if self._stays else unnamed
        self._file: BinaryIO | None = None
        self._end = 0  # of what is written and belongs to whole batches of the data
        self._facts = dict.fromkeys(("estimator", "gram", "bandwidth", "operand"))
        self._facts |= {"layers": [], "eps": []}
        self._batches: list[dict] = []
        self._seen: set[bytes] = set()

    def __enter__(self) -> "FingerprintWriter":
        for left in self.path.parent.glob(f".{self.path.name}.*.data"):
            left.unlink(missing_ok=True)  # of a process that was killed
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
        if self.finished or not self._stays:
            self._data.unlink(missing_ok=True)

    def add(self, parts: Iterable[tuple[GramStack, torch.Tensor]]) -> None:
        """Write the CKA batches of one batch of the data, each with its images.

        After an error it is as if this had not been called.

        Raises:
            ValueError: an earlier batch held the same images: it could not be told from this one.
            OSError: the disk is full, say.
        """
        seen, batches, facts = set(), [], self._facts
        with self._writing() as file:
            file.seek(self._end)
            for stack, images in parts:
                known = bytes(value_bytes(images))
                if known in self._seen or known in seen:
                    raise ValueError(
                        "two batches have the same `ids`: every image of the data needs a name of "
                        "its own"
                    )
                seen.add(known)
                digest = hashlib.sha256()
                for value in self._values(stack, images):
                    data = value_bytes(value)
                    file.write(data)
                    digest.update(data)
                batches.append({"n": stack.n, "sha256": digest.hexdigest()})
                facts = _joined(facts, stack)
            if len(self._batches) + len(batches) > MOST:
                raise ValueError(
                    f"a fingerprint holds up to {MOST:,} CKA batches, and these are more: take a "
                    "larger `n`, or a part of the images for each of several fingerprints"
                )
            end = file.tell()
        self._end, self._facts = end, facts
        self._batches += batches
        self._seen |= seen

    def _values(self, stack: GramStack, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What of a batch is written, in the order of `PARTS`."""
        packed = stack.packed.cpu()
        size = packed.square().mean(1).sqrt()
        # No entry is larger than √m times the root mean square: all fit into half precision.
        scaled = torch.isfinite(size) & (size > 0) & (self.dtype != EXACT)
        scale = torch.where(scaled, size, 1.0)
        values = (packed / scale[:, None]).to(STORED[self.dtype])
        rest = (stack.diagonal.cpu(), stack.row_sums.cpu(), stack.summary.cpu(), images)
        return values, scale, *rest

    @contextmanager
    def _writing(self) -> Iterator[BinaryIO]:
        try:
            if self._file is None:
                self._file = os.fdopen(os.open(self._data, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            yield self._file
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error.strerror or error}") from error

    def state(self) -> dict:
        """What `load` needs to go on from here; all that was written is safe on the disk."""
        if self._file is not None:
            with self._writing() as file:
                file.flush()
                os.fsync(file.fileno())
        return {"end": self._end, "facts": self._facts, "batches": self._batches}

    def load(self, state: Mapping, read: bool = False) -> None:
        """Go on behind what was written when the state was taken.

        Args:
            read: the file was there, has been read, and may be gone.

        Raises:
            ValueError: what was written is not there.
        """
        self._end, self._facts = state["end"], dict(state["facts"])
        self._batches = list(state["batches"])
        if self._data.exists() and self._data.stat().st_size >= self._end:
            self._seen = set(self._images())
        elif read or self._is_there():
            self.finished = True
        else:
            raise ValueError(
                f"cannot resume: {self._data} does not hold what was measured before; remove the "
                "state, and begin anew"
            )

    def _is_there(self) -> bool:
        """Whether all that was measured has been put in its place."""
        return self.path.exists() and Fingerprint(self.path)._plain["batches"] == self._batches

    @property
    def layers(self) -> list[str]:
        """Of the batches so far; none where there were none."""
        return self._facts["layers"]

    def _images(self) -> Iterator[bytes]:
        """Which images each batch that was written holds."""
        with open(self._data, "rb") as file:
            sizes = [batch["n"] for batch in self._batches]
            entries = _entries(len(self.layers), sizes, self._facts["estimator"], self.dtype)
            for name, entry in entries.items():
                if name.endswith(".images"):
                    begin, end = entry["data_offsets"]
                    file.seek(begin)
                    yield file.read(end - begin)

    def finish(self, model: Mapping, meta: Mapping, warnings: Iterable[str]) -> None:
        """Put the file in its place; the arguments say where it comes from, and what to mind."""
        if self.finished:
            return
        about = {"model": model, "meta": meta, "warnings": warnings}
        start = _start(self._facts, self._batches, self.dtype, **about)
        with self._writing() as data, array_file.replacing(self.path) as file:
            data.truncate(self._end)
            data.seek(0)
            file.write(start)
            shutil.copyfileobj(data, file, 1 << 24)
        self.finished = True


def _arrays(
    layers: int, n: int, estimator: str, dtype: str
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of what is stored of a batch, in the order in which it lies there."""
    shapes = (
        (layers, packed_length(n, estimator)),
        (layers,),
        (layers, n),
        (layers, n),
        (layers, 5),
    )
    arrays = {name: (torch.float64, shape) for name, shape in zip(PARTS, shapes, strict=False)}
    arrays["packed"] = (STORED[dtype], shapes[0])
    return arrays | {"images": (torch.int64, (n,))}


def stored_bytes(layers: int, n: int, estimator: str, dtype: str) -> int:
    """What a CKA batch of n images takes on disk."""
    arrays = _arrays(layers, n, estimator, dtype).values()
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in arrays)


def file_size(
    layers: Sequence[str],
    sizes: Sequence[int],
    dtype: str,
    *,
    model: Mapping,
    meta: Mapping,
    warnings: Iterable[str],
    **options,
) -> int:
    """Bytes of the fingerprint of CKA batches of these sizes.

    Args:
        layers, options: as for `GramStack`. dtype: of the packed matrices, as for the writer.
        model, meta, warnings: as for `FingerprintWriter.finish`.
    """
    stack = GramStack(layers, sizes[0], device="meta", **options)
    facts = _made_with(stack) | {"eps": [[torch.finfo(torch.float32).eps] * 2] * len(layers)}
    batches = [{"n": n, "sha256": hashlib.sha256().hexdigest()} for n in sizes]
    start = _start(facts, batches, dtype, model=model, meta=meta, warnings=warnings)
    each = {n: stored_bytes(len(layers), n, stack.estimator, dtype) for n in set(sizes)}
    return len(start) + sum(each[n] for n in sizes)


def _start(
    facts: Mapping,
    batches: Sequence[Mapping],
    dtype: str,
    *,
    model: Mapping,
    meta: Mapping,
    warnings: Iterable[str],
) -> bytes:
    """All of the file that stands before the arrays."""
    plain = {
        **facts,
        "dtype": dtype,
        "batches": batches,
        "model": dict(model),
        "meta": dict(meta),
        "warnings": list(warnings),
    }
    text = json.dumps(array_file.plain(plain, "fingerprint"))
    header = {"schema": array_file.SCHEMA, "kind": "fingerprint", "contents": text}
    header["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    sizes = [batch["n"] for batch in batches]
    entries = _entries(len(facts["layers"]), sizes, facts["estimator"], dtype)
    start = json.dumps({"__metadata__": {array_file.KEY: json.dumps(header)}} | entries).encode()
    start += b" " * (-len(start) % 8)
    return len(start).to_bytes(8, "little") + start


def _entries(layers: int, sizes: Iterable[int], estimator: str, dtype: str) -> dict[str, dict]:
    """What the header says of each array: its type, its shape and its place."""
    entries, begin = {}, 0
    for number, n in enumerate(sizes):
        for name, (kind, shape) in _arrays(layers, n, estimator, dtype).items():
            end = begin + math.prod(shape) * kind.itemsize
            entries[f"{number}.{name}"] = {
                "dtype": NAMES[kind],
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
            begin = end
    return entries


def _made_with(stack: GramStack) -> dict:
    """What Gram matrices are of, as the header says it."""
    return {
        "layers": list(stack.layers),
        "estimator": stack.estimator,
        "gram": stack.gram,
        "bandwidth": stack.bandwidth,
        "operand": None if stack.operand is None else str(stack.operand),
    }


def _joined(facts: Mapping, stack: GramStack) -> dict:
    """What holds of all batches, with one more."""
    eps = stack.eps.tolist()
    before = facts["eps"] or eps
    largest = [list(map(max, *rows)) for rows in zip(before, eps, strict=True)]
    return _made_with(stack) | {"eps": largest}


class Fingerprint:
    """A model measured before: its Gram matrices on named images.

    Args:
        path: of what `fastcka.fingerprint` wrote.

    Attributes:
        layers, n_batches, n_examples: what was measured.
        model, meta, warnings: where it comes from, and what was told of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or no fingerprint.

    Opening reads the header alone; a batch is read, and its checksum tested, when it is compared.

    >>> import fastcka, tempfile
    >>> net, images = torch.nn.Sequential(torch.nn.Linear(8, 4)), torch.randn(32, 8)
    >>> options = {"ids": lambda batch: batch.sum(1).tolist(), "layers": "0"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = fastcka.fingerprint(net, [images], f"{folder}/net.fp", **options)
    ...     fastcka.Fingerprint(f"{folder}/net.fp").layers
    ('0',)
    """

    def __init__(self, path: str | os.PathLike):
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            self._file = safe_open(self.path, "pt")
            header = json.loads((self._file.metadata() or {})[array_file.KEY])
            array_file.check_header(self.path, header, "fingerprint")
            if hashlib.sha256(header["contents"].encode()).hexdigest() != header["sha256"]:
                raise ValueError("the checksum differs")
            self._plain = json.loads(header["contents"])
        except array_file.Unexpected:
            raise
        except (
            *(SafetensorError, LookupError, TypeError, ValueError),
            *(AttributeError, RecursionError),
        ) as error:
            raise ValueError(f"{path} is damaged, or no file of fastcka's: {error}") from None
        plain = self._plain
        self.layers = tuple(plain["layers"])
        self.model, self.meta = plain["model"], plain["meta"]
        self.warnings = tuple(plain["warnings"])
        self.n_batches = len(plain["batches"])
        self.n_examples = sum(batch["n"] for batch in plain["batches"])
        self._place: dict[bytes, int] | None = None

    def __repr__(self) -> str:
        return (
            f"Fingerprint({self.model.get('name')}, {len(self.layers)} layers, {self.n_examples} "
            f"images in {self.n_batches} batches)"
        )

    @property
    def options(self) -> dict:
        """What Gram matrices that are compared with these must be made with."""
        return {name: self._plain[name] for name in ("estimator", "gram", "bandwidth")}

    def images(self, number: int) -> torch.Tensor:
        """Which images batch `number` holds."""
        return self._tensor(number, "images")

    def find(self, images: torch.Tensor) -> int | None:
        """The number of the batch that holds these images in this order; None where none does."""
        if self._place is None:
            self._place = {
                bytes(value_bytes(self.images(number))): number for number in range(self.n_batches)
            }
        return self._place.get(bytes(value_bytes(images)))

    def stack(
        self,
        number: int,
        operand: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> GramStack:
        """The Gram matrices of batch `number`, as they were measured.

        Args:
            operand: of those that they are compared with; it says nothing of these.
            device: to put them on.

        Raises:
            ValueError: the batch is damaged.
        """
        digest, parts = hashlib.sha256(), {}
        for name in PARTS:
            parts[name] = self._tensor(number, name)
            digest.update(value_bytes(parts[name]))
        known = self._plain["batches"][number]
        if digest.hexdigest() != known["sha256"]:
            raise ValueError(f"{self.path} is damaged: the checksum of batch {number} differs")
        stack = GramStack(self.layers, known["n"], **self.options, operand=operand, device=device)
        stack.packed.copy_(parts["packed"].double() * parts["scale"][:, None])
        stack.diagonal.copy_(parts["diagonal"])
        stack.row_sums.copy_(parts["row_sums"])
        stack.summary.copy_(parts["summary"])
        if self._plain["dtype"] != EXACT:  # of the digits that were kept
            stack.summary[:, CENTRED] = stack.packed.square().sum(1)
        stack.eps = torch.tensor(self._plain["eps"], dtype=torch.float64)
        return stack.as_filled()

    def _tensor(self, number: int, name: str) -> torch.Tensor:
        from safetensors import SafetensorError

        try:
            return self._file.get_tensor(f"{number}.{name}")
        except SafetensorError as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None


class Measured:
    """A fingerprint as one of the models of a comparison: it is looked up where others run.

    Args:
        label: what messages and the accumulator call it.
        fingerprint: of the model. ids: as for `images_of`.
        name: what the result calls it; None is what it was called.
        operand, device: of the models that run.
    """

    autocast = None
    notices = ()

    def runs_with(self, other) -> bool:
        """It does not run."""
        return False

    def __init__(
        self,
        label: str,
        fingerprint: Fingerprint,
        ids: Callable | None = None,
        *,
        name: str | None = None,
        operand: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ):
        self.label, self.name, self.fingerprint, self._ids = label, name, fingerprint, ids
        self.layers, self.capture = fingerprint.layers, self
        self._operand, self.device = operand, torch.device(device)

    @contextmanager
    def ready(self) -> Iterator[None]:
        yield

    def inputs(self, batch) -> Inputs:
        images = images_of(batch, self._ids)
        return Inputs((images,), {}, len(images))

    def stacks(self, inputs: Inputs, parts: list[slice], batch: int) -> list[GramStack]:
        """The stacks of the same images, part by part."""
        (images,) = inputs.args
        return [
            self.fingerprint.stack(number, self._operand, self.device)
            for number in self.places(images, parts, batch)
        ]

    def places(self, images: torch.Tensor, parts: list[slice], batch: int) -> list[int]:
        """The numbers under which parts of a batch are stored.

        Raises:
            ValueError: the fingerprint is of other images.
        """
        numbers = [self.fingerprint.find(images[part]) for part in parts]
        if None in numbers:
            raise ValueError(
                f"batch {batch} of `data` holds other images than any batch of "
                f"{self.fingerprint.path}, or in another order{_how(self.fingerprint.meta)}"
            )
        return numbers

    def identity(self) -> dict:
        return {"fingerprint": [one["sha256"] for one in self.fingerprint._plain["batches"]]}

    def describe(self) -> dict:
        known = {"fingerprint": self.fingerprint.path.name, "measured": self.fingerprint.meta}
        return self.fingerprint.model | known | ({"name": self.name} if self.name else {})

    def explain(self, n_batches: int) -> list[str]:
        """What to mind of a comparison of so many batches."""
        name, whole = self.fingerprint.path.name, self.fingerprint.n_batches
        told = [f"{name}: {warning}" for warning in self.fingerprint.warnings]
        if n_batches < whole:
            told.append(f"{name} holds {whole} batches, compared are {n_batches}")
        return told


class MeasuredBatches:
    """The images of a fingerprint as data, where there is no model to be run."""

    def __init__(self, fingerprint: Fingerprint):
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self.fingerprint.n_batches

    def __iter__(self) -> Iterator[dict]:
        return ({"file": self.fingerprint.images(number)} for number in range(len(self)))


def _how(meta: Mapping) -> str:
    data = meta.get("data", {})
    told = {"n": meta.get("n")} | {
        name: data.get(name) for name in ("batch_size", "seed", "files_used")
    }
    known = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    return f"; it was made with {known}" if known else ""
