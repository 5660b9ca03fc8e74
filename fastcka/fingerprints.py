"""What is left of a model on named images: its centred Gram matrices on disk, without its weights.

A safetensors file, read by memory map. Of CKA batch b, with L layers and n images:

    b.packed    [L, m] float32 or float16, each layer divided by b.scale    b.scale    [L] float64
    b.diagonal  [L, n] float64       b.row_sums [L, n] float64       b.summary  [L, 5] float64
    b.images    [n] int64: which images, in their order

The header holds a SHA-256 of every batch, checked when it is read, and one of itself.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import torch

from fastcka import array_file
from fastcka.conditioning import CENTRED
from fastcka.gram_stack import GramStack
from fastcka.participant import Inputs
from fastcka.trail import value_bytes

SUFFIX = ".fp"
STORED = {"fp32": torch.float32, "fp16": torch.float16}
PARTS = ("packed", "scale", "diagonal", "row_sums", "summary", "images")
NAMES = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


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


class FingerprintWriter:
    """Writes batches to disk as they come; the file appears, whole, when all is there.

    Args:
        path: of the file. dtype: "fp32" or "fp16", of the packed matrices.
    """

    def __init__(self, path: str | os.PathLike, dtype: str = "fp32"):
        if dtype not in STORED:
            raise ValueError(f"`dtype` must be 'fp32' or 'fp16', but is {dtype!r}")
        self.path, self.dtype = Path(path), dtype
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {path}: its folder does not exist, create it first"
            )
        self._data = self.path.with_name(f".{self.path.name}.{os.getpid()}.data")
        self._entries: dict[str, dict] = {}
        self._batches: list[dict] = []
        self._seen: set[bytes] = set()
        self._stack: GramStack | None = None
        self._eps = None

    def __enter__(self) -> "FingerprintWriter":
        for left in self.path.parent.glob(f".{self.path.name}.*.data"):
            left.unlink(missing_ok=True)  # of a process that was killed
        self._file = open(self._data, "wb")
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._data.unlink(missing_ok=True)

    def add(self, stack: GramStack, images: torch.Tensor) -> None:
        """Write one batch.

        Raises:
            ValueError: an earlier batch held the same images: it could not be told from this one.
        """
        known = bytes(value_bytes(images))
        if known in self._seen:
            raise ValueError(
                "two batches have the same `ids`: every image of the data needs a name of its own"
            )
        self._seen.add(known)
        packed = stack.packed.cpu()
        size = packed.square().mean(1).sqrt()
        # No entry is larger than √m times the root mean square: all fit into half precision.
        scale = torch.where(torch.isfinite(size) & (size > 0), size, 1.0)
        values = (packed / scale[:, None]).to(STORED[self.dtype])
        rest = (scale, stack.diagonal.cpu(), stack.row_sums.cpu(), stack.summary.cpu(), images)
        number, digest = len(self._batches), hashlib.sha256()
        for name, value in zip(PARTS, (values, *rest), strict=True):
            data = value_bytes(value)
            self._entries[f"{number}.{name}"] = _entry(value, self._file.tell())
            self._file.write(data)
            digest.update(data)
        self._batches.append({"n": stack.n, "sha256": digest.hexdigest()})
        self._stack = stack
        eps = stack.eps
        self._eps = eps if self._eps is None else torch.maximum(self._eps, eps)

    def finish(self, model: Mapping, meta: Mapping, warnings: Iterable[str]) -> None:
        """Put the file in its place; the arguments say where it comes from, and what to mind."""
        whole = {"eps": self._eps.tolist(), "batches": self._batches}
        whole |= {"model": dict(model), "meta": dict(meta), "warnings": list(warnings)}
        lead = _lead(self._stack, self.dtype, **whole) | self._entries
        start = json.dumps(lead).encode()
        start += b" " * (-len(start) % 8)
        self._file.flush()
        with array_file.replacing(self.path) as file:
            file.write(len(start).to_bytes(8, "little") + start)
            with open(self._data, "rb") as data:
                shutil.copyfileobj(data, file, 1 << 24)


def file_size(
    layers: Sequence[str],
    sizes: Iterable[int],
    dtype: str,
    *,
    model: Mapping,
    meta: Mapping,
    warnings: Iterable[str],
    **options,
) -> int:
    """Bytes of the fingerprint of CKA batches of these sizes.

    Args:
        layers, options: as for `GramStack`. dtype: of the packed matrices, "fp32" or "fp16".
        model, meta, warnings: as for `FingerprintWriter.finish`.
    """
    batches, end, entries, stack = [], 0, 0, None
    for number, n in enumerate(sizes):
        if stack is None or stack.n != n:
            stack = GramStack(layers, n, device="meta", **options)
            parts = (stack.packed.to(STORED[dtype]), stack.summary[:, 0], stack.diagonal)
            images = torch.empty(n, dtype=torch.int64, device="meta")
            parts += (stack.row_sums, stack.summary, images)
        for name, value in zip(PARTS, parts, strict=True):
            entry = _entry(value, end)
            end = entry["data_offsets"][1]
            entries += len(json.dumps({f"{number}.{name}": entry}))  # {} around it, or ", " before
        batches.append({"n": n, "sha256": hashlib.sha256().hexdigest()})
    whole = {"eps": [[torch.finfo(torch.float32).eps] * 2] * len(layers), "batches": batches}
    whole |= {"model": dict(model), "meta": dict(meta), "warnings": list(warnings)}
    start = len(json.dumps(_lead(stack, dtype, **whole))) + entries
    return 8 + start + -start % 8 + end


def _entry(value: torch.Tensor, begin: int) -> dict:
    """What the header says of a tensor that begins at so many bytes."""
    end = begin + value.numel() * value.itemsize
    return {
        "dtype": NAMES[value.dtype],
        "shape": list(value.shape),
        "data_offsets": [begin, end],
    }


def _lead(stack: GramStack, dtype: str, **whole) -> dict:
    """What the header says of all batches: how they were made, and what `finish` is told."""
    plain = {
        "layers": list(stack.layers),
        "estimator": stack.estimator,
        "gram": stack.gram,
        "bandwidth": stack.bandwidth,
        "operand": None if stack.operand is None else str(stack.operand),
        "dtype": dtype,
        **whole,
    }
    text = json.dumps(array_file.plain(plain, "fingerprint"))
    header = {"schema": array_file.SCHEMA, "kind": "fingerprint", "contents": text}
    header["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return {"__metadata__": {array_file.KEY: json.dumps(header)}}


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
        stack.summary[:, CENTRED] = stack.packed.square().sum(1)  # of the digits that were kept
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
        found = []
        for part in parts:
            number = self.fingerprint.find(images[part])
            if number is None:
                raise ValueError(
                    f"batch {batch} of `data` holds other images than any batch of "
                    f"{self.fingerprint.path}, or in another order{_how(self.fingerprint.meta)}"
                )
            found.append(self.fingerprint.stack(number, self._operand, self.device))
        return found

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
