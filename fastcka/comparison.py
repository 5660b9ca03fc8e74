"""Models and data in, CKA between all their layers out; written for any number of models."""

import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter

import torch
from torch import nn

from fastcka.arguments import check_data, check_model, checkpoint_of
from fastcka.capture.tap import as_items
from fastcka.checkpoint import difference
from fastcka.data.pairing import Paired
from fastcka.distributed import Share, shared
from fastcka.fingerprints import SUFFIX, Fingerprint, Measured, MeasuredBatches
from fastcka.kernels.operations import operand_dtype
from fastcka.measurement import measure
from fastcka.one_by_one import InTurn, all_together, each_alone
from fastcka.participant import Participant, autocast_dtype
from fastcka.permutation import PERMUTATIONS
from fastcka.result import CKAResult, CKAResults
from fastcka.streaming import pairs_of


def compare(
    model_a: nn.Module | Callable | Fingerprint | str | os.PathLike,
    model_b: nn.Module | Callable | Fingerprint | str | os.PathLike | None = None,
    data: Iterable | None = None,
    *,
    data_b: Iterable | None = None,
    layers_a="blocks",
    layers_b=None,
    input_a: Callable | None = None,
    input_b: Callable | None = None,
    forward_a: Callable | None = None,
    forward_b: Callable | None = None,
    n: int | None = None,
    passes: int = 1,
    estimator: str = "unbiased",
    weighting: str = "pairs",
    gram: str = "linear",
    bandwidth: float | None = None,
    operand: str | torch.dtype | None = None,
    calibrate: bool | int = False,
    also: Sequence[str] = (),
    influence: Sequence[tuple] = (),
    autocast: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    save_every: float = 300.0,
    distributed: bool = False,
    ids: Callable | None = None,
    one_by_one: bool = False,
) -> CKAResult:
    """Measure CKA between all layers of two models, or of one with itself, in one pass of the data.

    The number is that of `MinibatchCKA`: HSIC_1 [Song et al. 2012] summed over batches and divided
    once [Nguyen et al. 2021]. Activations are reduced inside the hooks and not kept. The models run
    in evaluation mode without gradients, and leave as they came, also after an error.

    Args:
        model_a, model_b: networks, or fingerprints of networks that were measured before, also by
            the path of their file; None compares the first with itself.
        data: batches, each a tensor [n, …], a tuple (x, …) whose first element alone is the input,
            or a dict that is passed as keywords. Every batch must be a random sample of the images:
            a loader that does not shuffle, or batches of one class, give a warning.
        data_b: batches for the second model, of the same images in the same order.
        layers_a, layers_b: names, globs (`*` within dots, `**` across), module types, Taps, a
            list of these, or a preset: "blocks"; "leaves", every module without parts, but for
            identities and dropout; "raghu", the layers of Raghu et al. 2021. None for the second is
            what was asked of the first. A list of names keeps its order, all else comes as
            executed. Of a fingerprint they are what was stored.
        input_a, input_b: from a batch to what the model is called with: a tensor, a tuple of
            arguments, or a dict of keywords.
        forward_a, forward_b: called as forward(model, batch) instead of the model, with the whole
            batch, or with what `input_a` returns.
        n: images in a CKA batch; divides the batches of the data. None takes them as they come. CKA
            batches are the blocks of the error bars, or beyond 256 of them the batches of the data.
        passes: how often the data is read. Where a loader shuffles anew CKA gets steadier; its
            error bars are those of one pass, since the images are no more than they were.
        estimator, weighting, gram, bandwidth, operand, backend: as for `MinibatchCKA`.
        calibrate: measure too what CKA would be by chance, with the images in 200 random orders, or
            in so many: see `CKAResult.p_values` and `calibrated`. Costs as many times the products
            of all pairs.
        also: measures beside CKA, by name: see `CKAResult.also`.
        influence: pairs (layer_a, layer_b), by their names in the result: what each single image
            does to their CKA, see `CKAResult.influence`. Needs one pass; keeps 24 bytes an image
            and pair.
        autocast: "fp16" or "bf16" runs the models in that type; None as they are.
        device: where they run; None is where they are.
        progress: a bar where the output is a terminal.
        checkpoint: a file for the state of a long comparison, replaced every `save_every` seconds,
            and after an error, Ctrl-C or SIGTERM. None saves nothing.
        resume: go on from `checkpoint`, where it is there; the numbers are then those of an
            uninterrupted run, to the bit on the same device with as many threads. Models, data and
            arguments must be the same. `fastcka.data.ImageBatches` begin where they stopped; other
            data are read again and let by, and must give the same batches.
        save_every: seconds.
        distributed: share the batches among the processes of `torch.distributed`; each is given all
            of `data`, runs a part of the batches, and returns the whole result.
        ids: from a batch to a name or number of each of its images, to find them in a fingerprint
            and to name them beside `influence`; `fastcka.data.ImageBatches` say it themselves. Two
            fingerprints need no data.
        one_by_one: for models that do not fit together. Each runs alone over all of `data`, and
            leaves its Gram matrices on disk until they are compared; the numbers are the same, to
            the bit on the same device. Models may be given as functions that make them, called when
            their turn comes. `data` are read once a model and must give the same batches each time.
            Takes 4·n bytes an image and layer beside `checkpoint`, or without one in the folder for
            temporary files, and as much again for the largest model.

    Returns:
        `CKAResult`; its `meta` holds all that the numbers depend on.

    Raises:
        TypeError, ValueError: an argument is none of the above, a layer is unknown, or the data
            gives no batch of 4 images; the message says what to do.
        ValueError: what is resumed is another comparison, or its file is damaged.
        FileExistsError: `checkpoint` is there, and `resume` is not asked for.
        RuntimeError: `distributed` without several processes, or one of them did not finish.
        OSError: the disk has no room for what `one_by_one` leaves there.

    Whatever ends a comparison midway, an error of the data, of a model, or an interrupt, bears what
    was measured until then as its attribute `partial`.

    Cost: a forward pass of each model, n²·p flop a layer of p features, and memory for one Gram
    matrix of n² numbers a layer.

    >>> import torch, fastcka
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> images = torch.randn(200, 8)
    >>> result = fastcka.compare(net, data=images.split(50))
    >>> result.layers_a, result.cka.shape
    (('0', '1', '2'), (3, 3))
    """
    model_a, model_b = _opened(model_a), _opened(model_b)
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        check_model(name, model, optional=name == "model_b", made=one_by_one)
    models = [model for model in (model_a, model_b) if model is not None]
    data = _data_for(models, data)
    if model_b is None and not (layers_b is data_b is input_b is forward_b is None):
        raise ValueError("there is no `model_b` for `layers_b`, `data_b`, `input_b` or `forward_b`")
    _check_stored(models, estimator, gram, bandwidth, passes)
    layers_a = as_items(layers_a)
    _check_unused("model_a", model_a, input_a=input_a, forward_a=forward_a)
    _check_unused("model_b", model_b, layers_b=layers_b, input_b=input_b, forward_b=forward_b)
    if isinstance(data, MeasuredBatches) and layers_a != as_items("blocks"):
        raise ValueError("`layers_a` does nothing: the layers of fingerprints are those stored")
    stored = {
        "ids": None if isinstance(data, MeasuredBatches) or one_by_one else ids,
        "operand": operand_dtype(operand),
        "device": _device(models, device),
    }
    common = {"autocast": autocast_dtype(autocast), "device": device}
    pick_a = pick_b = None
    if data_b is not None:
        check_data(data_b, "data_b")
        data, pick_a, pick_b = Paired(data, data_b), itemgetter(0), itemgetter(1)
    taking_part = [
        Measured("a", model_a, **stored)
        if isinstance(model_a, Fingerprint)
        else _in_turn(
            "a", model_a, layers_a, pick=pick_a, prepare=input_a, forward=forward_a, **common
        )
    ]
    if isinstance(model_b, Fingerprint):
        taking_part.append(Measured("b", model_b, **stored))
    elif model_b is not None:
        try:
            b = _in_turn(
                "b",
                model_b,
                layers_a if layers_b is None else layers_b,
                pick=pick_b,
                prepare=input_b,
                forward=forward_b,
                **common,
            )
        except ValueError as error:
            if layers_b is None:
                error.add_note("`layers_b` was not given and is as `layers_a`")
            raise
        taking_part.append(b)
    course = {"n": n, "passes": passes, "progress": progress, "many": False}
    course |= _course(checkpoint, resume, save_every, distributed)
    options = {
        "estimator": estimator,
        "weighting": weighting,
        "gram": gram,
        "bandwidth": bandwidth,
        "operand": operand,
        "permutations": _permutations(calibrate, passes),
        "also": also,
        "influence": _of_one_pass(influence, passes),
        "backend": backend,
    }
    way = partial(each_alone, ids=ids, **course, **options) if one_by_one else all_together
    with way(taking_part, data, checkpoint=course["checkpoint"]) as (participants, batches):
        return measure(participants, batches, **course, **options, ids=stored["ids"])


def compare_many(
    models: Mapping[str, nn.Module | Callable | Fingerprint | str | os.PathLike],
    data: Iterable | None = None,
    *,
    layers="blocks",
    inputs: Mapping[str, Callable] | None = None,
    forwards: Mapping[str, Callable] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    n: int | None = None,
    passes: int = 1,
    estimator: str = "unbiased",
    weighting: str = "pairs",
    gram: str = "linear",
    bandwidth: float | None = None,
    operand: str | torch.dtype | None = None,
    calibrate: bool | int = False,
    also: Sequence[str] = (),
    influence: Sequence[tuple] = (),
    autocast: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    save_every: float = 300.0,
    distributed: bool = False,
    ids: Callable | None = None,
    one_by_one: bool = False,
) -> CKAResults:
    """Measure CKA between every layer of any number of models in one pass of the data.

    Each model runs once a batch, however many pairs it is part of, and under however many names,
    for other layers each; with `one_by_one`, each in a pass of its own.

    Args:
        models: networks or fingerprints by name.
        layers: as `layers_a` of `compare`, for all models; or a mapping by model.
        influence: pairs ((model, layer), (model, layer)).
        pairs: of models, those that are compared; None is every pair, each with itself.
        inputs, forwards: mappings from model to what `input_a` and `forward_a` are in `compare`.
        data and the other arguments: as in `compare`.

    Returns:
        `CKAResults`: every pair of models, each with itself included; or those of `pairs`.

    Raises: as `compare`.

    >>> import torch, fastcka
    >>> def net(width):
    ...     return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU())
    >>> nets = {"thin": net(4), "wide": net(32)}
    >>> results = fastcka.compare_many(nets, torch.randn(120, 8).split(40))
    >>> sorted(results)
    [('thin', 'thin'), ('thin', 'wide'), ('wide', 'wide')]
    """
    if not isinstance(models, Mapping) or not models:
        raise TypeError(
            "`models` must be a mapping from name to model, for example {'vit': vit, 'cnn': cnn}"
        )
    models = {name: _opened(model) for name, model in models.items()}
    for name, model in models.items():
        check_model(f"models[{name!r}]", model, made=one_by_one)
    data = _data_for(list(models.values()), data)
    _check_stored(list(models.values()), estimator, gram, bandwidth, passes)
    stored = {
        "ids": None if isinstance(data, MeasuredBatches) or one_by_one else ids,
        "operand": operand_dtype(operand),
        "device": _device(list(models.values()), device),
    }
    per_model = {"layers": layers, "inputs": inputs, "forwards": forwards}
    for argument, given in per_model.items():
        if argument != "layers" and not (given is None or isinstance(given, Mapping)):
            raise TypeError(f"`{argument}` must map models to functions, not be a function itself")
        strange = set(given) - set(models) if isinstance(given, Mapping) else None
        if strange:
            raise ValueError(f"`{argument}` names {sorted(strange)}, which `models` does not")
    taking_part = [
        Measured(name, model, name=name, **stored)
        if isinstance(model, Fingerprint)
        else _in_turn(
            name,
            model,
            layers.get(name, "blocks") if isinstance(layers, Mapping) else as_items(layers),
            name=name,
            prepare=(inputs or {}).get(name),
            forward=(forwards or {}).get(name),
            autocast=autocast_dtype(autocast),
            device=device,
        )
        for name, model in models.items()
    ]
    course = {"n": n, "passes": passes, "progress": progress, "many": True}
    course |= _course(checkpoint, resume, save_every, distributed)
    options = {
        "estimator": estimator,
        "weighting": weighting,
        "gram": gram,
        "bandwidth": bandwidth,
        "operand": operand,
        "permutations": _permutations(calibrate, passes),
        "also": also,
        "influence": _of_one_pass(influence, passes),
        "pairs": pairs_of(list(models), pairs),
        "backend": backend,
    }
    way = partial(each_alone, ids=ids, **course, **options) if one_by_one else all_together
    with way(taking_part, data, checkpoint=course["checkpoint"]) as (participants, batches):
        return measure(participants, batches, **course, **options, ids=stored["ids"])


def _in_turn(label: str, model: nn.Module | Callable, layers, **options) -> InTurn:
    """A model as it takes part; what is there already is checked already."""
    if not isinstance(model, nn.Module):
        return InTurn(label, lambda: Participant(label, _made(label, model), layers, **options))
    participant = Participant(label, model, layers, **options)
    return InTurn(label, lambda: participant, len(participant.capture.wanted))


def _made(label: str, make: Callable) -> nn.Module:
    model = make()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the function that makes model {label!r} must return a torch.nn.Module, but returned "
            f"{type(model).__name__}"
        )
    return model


def _opened(model):
    """A path is that of a fingerprint."""
    if isinstance(model, os.PathLike) or (isinstance(model, str) and model.endswith(SUFFIX)):
        return Fingerprint(model)
    return model


def _data_for(models: list, data: Iterable | None) -> Iterable:
    """The data, or where no model is to be run the images of the first."""
    if data is None and all(isinstance(model, Fingerprint) for model in models):
        return MeasuredBatches(models[0])
    check_data(data)
    return data


def _check_stored(
    models: list, estimator: str, gram: str, bandwidth: float | None, passes: int
) -> None:
    """Gram matrices on disk are of one kind, and of every image once."""
    if passes != 1 and any(isinstance(model, Fingerprint) for model in models):
        raise ValueError(f"`passes` is {passes}, but a fingerprint holds every image once")
    if gram == "rbf" and bandwidth is None:
        bandwidth = 1.0
    asked = {"estimator": estimator, "gram": gram, "bandwidth": bandwidth}
    for model in models:
        if isinstance(model, Fingerprint) and (different := difference(asked, model.options)):
            name, ours, theirs = different
            raise ValueError(f"`{name}` is {ours}, but {model.path} was made with {theirs}")


def _check_unused(name: str, model, **given) -> None:
    """What says how a model is run says nothing to a fingerprint."""
    if isinstance(model, Fingerprint):
        for argument, value in given.items():
            if value is not None:
                raise ValueError(f"`{argument}` does nothing: `{name}` is a fingerprint")


def _device(models: list, device: torch.device | str | None) -> torch.device | str:
    """Where the Gram matrices of those that run are."""
    if device is not None:
        return device
    networks = (model for model in models if isinstance(model, nn.Module))
    return next((value.device for network in networks for value in network.parameters()), "cpu")


def _permutations(calibrate: bool | int, passes: int) -> int:
    if not isinstance(calibrate, numbers.Integral):
        raise TypeError(
            f"`calibrate` must be True, False or a number of permutations, but is {calibrate!r}"
        )
    if calibrate and passes > 1:
        raise ValueError(
            f"`calibrate` needs one pass, but `passes` is {passes}: images that come again would "
            "make p-values too small"
        )
    return PERMUTATIONS if calibrate is True else int(calibrate)


def _of_one_pass(influence: Sequence[tuple], passes: int) -> Sequence[tuple]:
    if influence and passes > 1:
        raise ValueError(
            f"`influence` needs one pass, but `passes` is {passes}: an image that comes again is "
            "in several batches, and would have to be left out of all of them"
        )
    return influence


def _course(
    checkpoint: str | os.PathLike | None, resume: bool, save_every: float, distributed: bool
) -> dict:
    share = shared() if distributed else Share()
    return {"checkpoint": checkpoint_of(checkpoint, resume, save_every, share), "share": share}
