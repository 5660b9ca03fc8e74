"""From names of models and a folder of images to a result and its figure: `fastcka compare`."""

import argparse
import json
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fastcka import influence_table, models
from fastcka.capture import Capture
from fastcka.checkpoint import forget, states
from fastcka.command import (
    RESULTS,
    check_used,
    images,
    is_this,
    makers,
    measure_options,
    own_warnings,
    tell,
    tell_untrained,
    view,
)
from fastcka.comparison import compare, compare_many
from fastcka.data import ImageBatches
from fastcka.distributed import Share
from fastcka.fingerprints import SUFFIX, Fingerprint
from fastcka.launch import processes
from fastcka.models import Network
from fastcka.one_by_one import check_room, room
from fastcka.output_folder import output_folder
from fastcka.result import CKAResult, CKAResults
from fastcka.summary import in_words, summary

EMBEDDED = ("fastcka_vit_mini", "fastcka_resnet_mini")  # come with the package, trained
BLOCKS = ["blocks"]  # of --layers where nothing is said
RESULT, FIGURES, SUMMARY = "result.safetensors", ("heatmap.png", "heatmap.pdf"), "summary.json"
INFLUENCE = "influence.csv"  # where it is asked for
PARTIAL = "partial.safetensors"  # what there is of a result after an error
STATE = "state.safetensors"  # what --resume goes on from; of each process, state-0-of-2.safetensors


def run(options: argparse.Namespace) -> None:
    """`fastcka compare`, with its options as parsed."""
    labels, layers = asked(options)
    with processes(options.threads) as share, ExitStack() as stack:
        options.silent = share.rank > 0  # one of them speaks for all
        options.quiet |= options.silent
        if share.from_first(lambda: _is_finished(options)):
            tell(options, f"there is nothing to resume: {options.output} is finished")
            return
        folder = share.from_first(lambda: stack.enter_context(_output_folder(options, labels)))
        _run(options, labels, layers, folder, share)


def asked(options: argparse.Namespace) -> tuple[list[str], dict[str, list[str]]]:
    """What the models are called, and the layers that are asked of each."""
    check_used(options)
    if not options.models:
        options.models, options.pretrained = list(EMBEDDED), True
    labels = models.labels(
        [Path(name).stem if _is_measured(name) else name for name in options.models]
    )
    options.influence = _influence(options.influence, labels)
    return labels, _layers(options, labels)


def _is_finished(options: argparse.Namespace) -> bool:
    """Who always resumes, as a supervisor does, finds out here that all is done."""
    if not (options.resume and options.output) or options.overwrite:
        return False
    folder = Path(options.output)
    if not (folder / RESULT).exists() or states(folder / STATE):
        return False
    try:
        command = json.loads((folder / SUMMARY).read_text())["provenance"]["command"]
    except (OSError, ValueError, LookupError):
        return False
    return is_this(command)


def _output_folder(options: argparse.Namespace, labels: list[str]):
    beyond = f"-and-{len(labels) - 3}-more" if len(labels) > 3 else ""
    name = "-".join(re.sub(r"[^\w.@()]+", "_", label)[:60] for label in labels[:3]) + beyond
    return output_folder(
        options.output,
        RESULTS / name,
        result=RESULT,
        state=STATE,
        overwrite=options.overwrite,
        resume=options.resume,
    )


def loaded(
    options: argparse.Namespace,
    labels: list[str],
    layers: dict[str, list[str]],
    place: Path,
    share: Share,
) -> tuple[dict[str, "Runs | Fingerprint"], ImageBatches | None]:
    """Who takes part, by label, and the images for those that run.

    Without --data these are made within `place`.
    """
    named = dict(zip(labels, options.models, strict=True))
    measured = {label: Fingerprint(name) for label, name in named.items() if _is_measured(name)}
    to_run = [label for label in labels if label not in measured]
    if measured and to_run and options.data is None and options.generate is None:
        (path, *_) = (one.path for one in measured.values())
        raise ValueError(f"{path} holds no images: give --data, the folder it was made with")
    if not to_run and any((options.data, options.max_images, options.generate)):
        raise ValueError("fingerprints hold their images: leave out --data and what chooses of it")
    chosen = dict(zip(labels, (options.layers_a, options.layers_b), strict=False))
    if any(chosen.get(label) for label in measured) or (not to_run and options.layers != BLOCKS):
        raise ValueError("the layers of a fingerprint are those that were stored: leave them out")
    make = makers(options, [named[label] for label in to_run], to_run)
    running = {
        label: Runs.seen(one, layers[label], label, options.one_by_one)
        for label, one in make.items()
    }
    known = {label: one.network for label, one in running.items()}
    tell_untrained(options, known)
    data = images(options, place, known, share) if to_run else None
    return {label: measured.get(label) or running[label] for label in labels}, data


def _run(
    options: argparse.Namespace,
    labels: list[str],
    layers: dict[str, list[str]],
    folder: Path,
    share: Share,
) -> None:
    place = RESULTS if options.output is None else folder
    everyone, data = loaded(options, labels, layers, place, share)
    if options.one_by_one and data is not None:
        _check_room(options, everyone, data, folder)
    if options.resume and not states(folder / STATE):
        tell(options, f"there is nothing to resume in {folder}: begins at the start")
    started = time.perf_counter()
    with own_warnings(options):
        try:
            result = measured(options, everyone, layers, data, folder, share)
        except BaseException as error:
            if hasattr(error, "partial") and share.rank == 0:
                path = _named(error.partial, everyone).save(folder / PARTIAL)
                tell(options, f"what was measured until then is in {path}; --resume goes on")
            elif states(folder / STATE):
                tell(options, f"what was measured until then is in {folder}; --resume goes on")
            raise
    seconds = time.perf_counter() - started
    if share.rank == 0:
        write(options, folder, result)
        (folder / PARTIAL).unlink(missing_ok=True)
        forget(folder / STATE)
    if not options.quiet:
        print(in_words(result))
        files = [RESULT, *FIGURES, SUMMARY, *([INFLUENCE] if options.influence else [])]
        print(f"{seconds:.1f} s; {', '.join(files)} are in {folder}")


@dataclass(frozen=True)
class Runs:
    """A model that runs: what is known of it, the module or what makes it, and its layers."""

    network: Network
    module: nn.Module | Callable[[], nn.Module]
    layers: int = 0

    @classmethod
    def seen(cls, make: Callable[[], Network], layers: list[str], label: str, again: bool):
        """Made once; to be made `again` when its turn comes, so that it need not stay."""
        network = make()
        if not again:
            return cls(network, network.module)
        count = len(Capture(network.module, layers, label).wanted)
        return cls(replace(network, module=None), lambda: make().module, count)


def _check_room(
    options: argparse.Namespace,
    everyone: dict[str, Runs | Fingerprint],
    data: ImageBatches,
    folder: Path,
) -> None:
    """Tell what `--one-by-one` takes on the disk, before anything runs."""
    n = options.n or options.batch_size
    batches = len(data) * options.passes * max(1, options.batch_size // n)
    layers = [one.layers for one in everyone.values() if isinstance(one, Runs)]
    need = room(layers, [n], options.estimator) * batches
    tell(options, f"one by one: up to {need / 1e6:,.1f} MB in {folder} until all are compared")
    if not states(folder / STATE):  # of which a part is there
        check_room(folder, need)


def _layers(options: argparse.Namespace, labels: list[str]) -> dict[str, list[str]]:
    layers = dict.fromkeys(labels, options.layers)
    for side, given in enumerate((options.layers_a, options.layers_b)):
        if given is not None:
            if side == len(labels):
                raise ValueError("--layers-b needs a second model")
            layers[labels[side]] = given
    return layers


def _influence(given: list[list[str]], labels: list[str]) -> list[tuple]:
    """Pairs of layers; with more than two models each begins with the name of its own."""
    if len(labels) < 3:
        return [tuple(pair) for pair in given]
    found = []
    for layer in (layer for pair in given for layer in pair):
        model = next((label for label in labels if layer.startswith(f"{label}:")), None)
        if model is None:
            raise ValueError(
                f"--influence names {layer!r}, but of which of the models: write "
                f"{labels[0]}:LAYER, or another of {', '.join(labels)}"
            )
        found.append((model, layer.removeprefix(f"{model}:")))
    return list(zip(found[::2], found[1::2], strict=True))


def _is_measured(name: str) -> bool:
    return name.endswith(SUFFIX)


def measured(
    options: argparse.Namespace,
    everyone: dict[str, Runs | Fingerprint],
    layers: dict[str, list[str]],
    data: ImageBatches | None,
    folder: Path,
    share: Share,
) -> CKAResult | CKAResults:
    """The comparison itself; its state is in `folder` where it is not finished."""
    common = measure_options(options) | {
        "passes": options.passes,
        "weighting": options.weighting,
        "calibrate": options.calibrate,
        "also": options.also,
        "influence": options.influence,
        "checkpoint": folder / STATE,
        "resume": True,  # a state that is there has been agreed to
        "save_every": options.save_every,
        "distributed": share.ranks > 1,
        "one_by_one": options.one_by_one,
    }
    views = {label: view(label) for label, one in everyone.items() if isinstance(one, Runs)}
    taking_part = {
        label: one.module if isinstance(one, Runs) else one for label, one in everyone.items()
    }
    if len(taking_part) > 2:
        results = compare_many(taking_part, data, layers=layers, inputs=views, **common)
        return _named(results, everyone)
    a, b = [*taking_part, None][:2]
    second = {"layers_b": layers[b], "input_b": views[b]} if b in views else {}
    result = compare(
        taking_part[a],
        taking_part.get(b),
        data,
        layers_a=layers[a],
        input_a=views.get(a),
        **second,
        **common,
    )
    return _named(result, everyone)


def _named(
    result: CKAResult | CKAResults, everyone: dict[str, Runs | Fingerprint]
) -> CKAResult | CKAResults:
    """What is known of the weights goes with what was seen of the models."""
    facts = {
        label: (one.network.provenance if isinstance(one, Runs) else one.model) | {"name": label}
        for label, one in everyone.items()
    }
    if isinstance(result, CKAResults):
        return CKAResults(
            {pair: _known(one, [facts[label] for label in pair]) for pair, one in result.items()}
        )
    return _known(result, list(facts.values()))


def _known(result: CKAResult, facts: list[dict]) -> CKAResult:
    models = {
        side: seen | known
        for (side, seen), known in zip(result.meta["models"].items(), facts, strict=False)
    }
    return replace(result, meta=result.meta | {"models": models})


def write(options: argparse.Namespace, folder: Path, result: CKAResult | CKAResults) -> None:
    """The result, its figures, and its summary."""
    result.save(folder / RESULT)
    text = json.dumps(summary(result), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    if options.influence:
        influence_table.write(result, folder / INFLUENCE)
    elif options.overwrite:
        (folder / INFLUENCE).unlink(missing_ok=True)  # of the earlier result
    errors = options.errors
    first = next(iter(result.values())) if isinstance(result, CKAResults) else result
    if errors and first.meta["n_blocks"] < 2:
        tell(options, "one batch alone has no standard errors: the figure is drawn without")
        errors = False
    for name in FIGURES:
        result.plot(folder / name, errors=errors, title=options.title)
