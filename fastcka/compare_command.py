"""From names of models and a folder of images to a result and its figure: `fastcka compare`."""

import argparse
import json
import re
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fastcka import models
from fastcka.comparison import compare, compare_many
from fastcka.data import ImageBatches, write_images
from fastcka.distributed import Share
from fastcka.launch import device, processes
from fastcka.models import Network
from fastcka.output_folder import output_folder
from fastcka.result import CKAResult, CKAResults
from fastcka.summary import in_words, summary
from fastcka.warning import CKAWarning

RESULTS = Path("fastcka-results")
RESULT, FIGURES, SUMMARY = "result.safetensors", ("heatmap.png", "heatmap.pdf"), "summary.json"
PARTIAL = "partial.safetensors"  # what there is of a result after an error
STATE = "state.safetensors"  # what --resume goes on from; of each process, state-0-of-2.safetensors


def run(options: argparse.Namespace) -> None:
    """`fastcka compare`, with its options as parsed."""
    _check_used(options)
    labels = models.labels(options.models)
    layers = _layers(options, labels)
    with processes(options.threads) as share, ExitStack() as stack:
        options.silent = share.rank > 0  # one of them speaks for all
        options.quiet |= options.silent
        folder = share.from_first(lambda: stack.enter_context(_output_folder(options, labels)))
        _run(options, labels, layers, folder, share)


def _output_folder(options: argparse.Namespace, labels: list[str]):
    beyond = f"-and-{len(labels) - 3}-more" if len(labels) > 3 else ""
    name = "-".join(re.sub(r"[^\w.@()]+", "_", label)[:60] for label in labels[:3]) + beyond
    return output_folder(
        options.output,
        RESULTS / name,
        result=RESULT,
        states=f"{Path(STATE).stem}*",
        overwrite=options.overwrite,
        resume=options.resume,
    )


def _run(
    options: argparse.Namespace,
    labels: list[str],
    layers: dict[str, list[str]],
    folder: Path,
    share: Share,
) -> None:
    networks = _networks(options, labels)
    data = _images(options, folder, networks, share)
    if options.resume and not any(folder.glob(f"{Path(STATE).stem}*")):
        _tell(options, f"there is nothing to resume in {folder}: begins at the start")
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always", CKAWarning)
        warnings.showwarning = _in_a_line(options, warnings.showwarning)
        try:
            result = _measure(options, networks, layers, data, folder, share)
        except BaseException as error:
            if hasattr(error, "partial") and share.rank == 0:
                path = _named(error.partial, networks).save(folder / PARTIAL)
                _tell(options, f"what was measured until then is in {path}; --resume goes on")
            raise
    seconds = time.perf_counter() - started
    if share.rank == 0:
        _write(options, folder, result)
        for left in (folder / PARTIAL, *folder.glob(f"{Path(STATE).stem}*")):
            left.unlink(missing_ok=True)
    if not options.quiet:
        print(in_words(result))
        print(f"{seconds:.1f} s; {', '.join((RESULT, *FIGURES, SUMMARY))} are in {folder}")


def _layers(options: argparse.Namespace, labels: list[str]) -> dict[str, list[str]]:
    layers = dict.fromkeys(labels, options.layers)
    for side, given in enumerate((options.layers_a, options.layers_b)):
        if given is not None:
            if side == len(labels):
                raise ValueError("--layers-b needs a second model")
            layers[labels[side]] = given
    return layers


def _check_used(options: argparse.Namespace) -> None:
    """An option that would do nothing is a mistake."""
    if options.amp_dtype and not options.amp:
        raise ValueError("--amp-dtype does nothing without --amp")
    if options.generate is not None and options.data is not None:
        raise ValueError("--generate does nothing beside --data")


def _networks(options: argparse.Namespace, labels: list[str]) -> dict[str, Network]:
    networks = {}
    for place, (label, name) in enumerate(zip(labels, options.models, strict=True)):
        # A model that is named twice is two networks: the second has weights of its own.
        seed = options.seed + options.models[:place].count(name)
        networks[label] = models.load(
            name, pretrained=options.pretrained, seed=seed, img_size=options.img_size
        )
    untrained = [
        label
        for label, network in networks.items()
        if network.provenance["weights"].startswith("untrained")
    ]
    if untrained:
        _tell(options, f"untrained, for want of --pretrained or NAME@FILE: {', '.join(untrained)}")
    return networks


def _images(
    options: argparse.Namespace, folder: Path, networks: dict[str, Network], share: Share
) -> ImageBatches:
    root = options.data
    if root is None:
        count = 512 if options.generate is None else options.generate
        place = RESULTS if options.output is None else folder
        root = place / f"images-{count}-seed{options.seed}"
        _tell(options, f"no --data: {count} generated images, in {root}")
        share.from_first(lambda: write_images(root, count, seed=options.seed))
    transforms, shared = {}, {}
    for label, network in networks.items():
        # Models with the same preprocessing share the view.
        transforms[label] = shared.setdefault(str(network.data_config), network.transform())
    return ImageBatches(
        root,
        transforms,
        batch_size=options.batch_size,
        seed=options.seed,
        workers=options.workers,
        max_images=options.max_images,
        on_broken=options.on_broken,
    )


def _measure(
    options: argparse.Namespace,
    networks: dict[str, Network],
    layers: dict[str, list[str]],
    data: ImageBatches,
    folder: Path,
    share: Share,
) -> CKAResult | CKAResults:
    common = {
        "n": options.n,
        "passes": options.passes,
        "estimator": options.estimator,
        "weighting": options.weighting,
        "gram": options.gram,
        "bandwidth": options.bandwidth,
        "operand": options.operand,
        "calibrate": options.calibrate,
        "also": options.also,
        "autocast": (options.amp_dtype or "float16") if options.amp else None,
        "device": options.device or device(),
        "backend": options.backend,
        "progress": not options.quiet,
        "checkpoint": folder / STATE,
        "resume": True,  # a state that is there has been agreed to
        "save_every": options.save_every,
        "distributed": share.ranks > 1,
    }
    views = {label: _view(label) for label in networks}
    modules = {label: network.module for label, network in networks.items()}
    if len(networks) > 2:
        result = compare_many(modules, data, layers=layers, inputs=views, **common)
    else:
        a, b = [*networks, None][:2]
        second = {} if b is None else {"layers_b": layers[b], "input_b": views[b]}
        result = compare(
            modules[a],
            modules.get(b),
            data,
            layers_a=layers[a],
            input_a=views[a],
            **second,
            **common,
        )
    return _named(result, networks)


def _view(label: str):
    return lambda batch: batch["views"][label]


def _named(result: CKAResult | CKAResults, networks: dict[str, Network]) -> CKAResult | CKAResults:
    """What is known of the weights goes with what was seen of the models."""
    facts = {label: network.provenance | {"name": label} for label, network in networks.items()}
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


def _write(options: argparse.Namespace, folder: Path, result: CKAResult | CKAResults) -> None:
    result.save(folder / RESULT)
    text = json.dumps(summary(result), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    errors = options.errors
    first = next(iter(result.values())) if isinstance(result, CKAResults) else result
    if errors and first.meta["n_blocks"] < 2:
        _tell(options, "one batch alone has no standard errors: the figure is drawn without")
        errors = False
    for name in FIGURES:
        result.plot(folder / name, errors=errors, title=options.title)


def _in_a_line(options: argparse.Namespace, show):
    """Our own warnings without the place in the code, which says nothing here."""

    def shown(message, category, *place):
        if issubclass(category, CKAWarning):
            _tell(options, str(message))
        else:
            show(message, category, *place)

    return shown


def _tell(options: argparse.Namespace, text: str) -> None:
    if not options.silent:
        print(f"fastcka: {text}", file=sys.stderr)
