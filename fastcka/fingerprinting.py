"""A model and images in, a fingerprint out: its Gram matrices on disk."""

import os
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from fastcka import array_file
from fastcka.arguments import check_data, check_model, checkpoint_of
from fastcka.capture.tap import as_items
from fastcka.distributed import Share
from fastcka.fingerprints import Fingerprint, FingerprintWriter, data_of
from fastcka.keeping import Keeper
from fastcka.measurement import measure
from fastcka.participant import Participant, autocast_dtype


def fingerprint(
    model: nn.Module,
    data: Iterable,
    path: str | os.PathLike,
    *,
    ids: Callable | None = None,
    layers="blocks",
    input: Callable | None = None,
    forward: Callable | None = None,
    n: int | None = None,
    estimator: str = "unbiased",
    gram: str = "linear",
    bandwidth: float | None = None,
    operand: str | torch.dtype | None = None,
    dtype: str = "fp32",
    about: Mapping | None = None,
    autocast: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    save_every: float = 300.0,
) -> Fingerprint:
    """Measure a model once, to compare it again and again without its weights.

    What is stored are the centred Gram matrices of all layers and all batches: all that CKA needs,
    and what `also` and `calibrate` of `compare` need.

    Args:
        model, layers, input, forward, data and the other arguments: as in `compare`.
        path: of the file; an older one is replaced when all is measured.
        ids: from a batch to a name or number of each of its images, by which they are known again:
            a function of the batch alone. `fastcka.data.ImageBatches` give the hashes of their
            files.
        dtype: of the stored entries, "fp32", "fp16", which halves the file and changes CKA by 2e-4
            at most in batches of 32 and more, or "fp64", which doubles it and changes nothing.
        about: what results shall say of the model, such as {"name": ..., "weights": ...}.
        checkpoint, resume, save_every: as in `compare`. Beside the state lies, in a file that ends
            in .data, what was measured, until the fingerprint is there; the state stays.

    Returns:
        The `Fingerprint`, open.

    Raises: as `compare`. ValueError: the images have no names, or two batches the same. OSError: it
    cannot be written.

    Cost: as `compare` of a model with itself; 2·n bytes an image and layer in fp32, half in fp16,
    and 16 bytes; twice that on disk for a moment at the end.

    >>> import fastcka, tempfile, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
    >>> images = list(torch.randn(64, 8).split(32))
    >>> def names(batch):
    ...     return [hash(image) for image in batch.sum(1).tolist()]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(fastcka.fingerprint(net, images, f"{folder}/net.fp", ids=names))
    ...     fastcka.compare(net, f"{folder}/net.fp", images, ids=names).cka.diagonal().round(6)
    Fingerprint(Sequential, 2 layers, 64 images in 2 batches)
    array([1., 1.])
    """
    if isinstance(model, Fingerprint):
        raise TypeError("`model` is a fingerprint already")
    check_model("model", model)
    check_data(data)
    about = array_file.plain(dict(about or {}), "about")
    participant = Participant(
        "a",
        model,
        as_items(layers),
        prepare=input,
        forward=forward,
        autocast=autocast_dtype(autocast),
        device=device,
    )
    state = checkpoint_of(checkpoint, resume, save_every, Share())
    data_file = None if state is None else data_of(state.path)
    with FingerprintWriter(path, dtype, data_file) as writer:
        measure(
            [participant],
            data,
            n=n,
            passes=1,
            progress=progress,
            checkpoint=state,
            share=Share(),
            many=False,
            keep=Keeper(writer, ids, about),
            estimator=estimator,
            gram=gram,
            bandwidth=bandwidth,
            operand=operand,
            backend=backend,
        )
    return Fingerprint(path)
