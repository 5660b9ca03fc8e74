"""From the name of a model and a folder of images to a file of its own: `fastcka fingerprint`."""

import argparse
import re
from pathlib import Path

from fastcka import models
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
from fastcka.distributed import Share
from fastcka.fingerprinting import fingerprint
from fastcka.fingerprints import SUFFIX, Fingerprint, data_of
from fastcka.launch import processes
from fastcka.output_folder import writing


def run(options: argparse.Namespace) -> None:
    """`fastcka fingerprint`, with its options as parsed."""
    check_used(options)
    options.silent = False
    (label,) = models.labels([options.model])
    path = Path(options.output or RESULTS / (re.sub(r"[^\w.@()]+", "_", label) + SUFFIX))
    if path.suffix != SUFFIX:
        raise ValueError(f"--output must end in {SUFFIX}, but is {path}")
    state = path.with_name(f"{path.name}.state")
    if _is_finished(options, path, state):
        tell(options, f"there is nothing to resume: {path} is finished")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        processes(options.threads) as share,
        writing(path.with_name(f".{path.name}.lock"), path),
    ):
        if share.ranks > 1:
            raise ValueError("a fingerprint is written by one process: start it without torchrun")
        if options.resume and not state.exists():
            tell(options, f"there is nothing to resume at {path}: begins at the start")
        elif not options.resume:
            _forget(state)
        _run(options, label, path, state)
        _forget(state)


def _is_finished(options: argparse.Namespace, path: Path, state: Path) -> bool:
    """Whether there is nothing left to do; what is there already is not replaced unasked."""
    if options.overwrite:
        return False
    if state.exists():
        if options.resume:
            return False
        raise ValueError(
            f"{path} is unfinished: add --resume to go on with it, --overwrite to begin anew, or "
            "give another --output"
        )
    if not path.exists():
        return False
    if options.resume and is_this(Fingerprint(path).meta["command"]):
        return True
    raise ValueError(f"{path} is there already: give another --output, or add --overwrite")


def _forget(state: Path) -> None:
    for file in (state, data_of(state)):
        file.unlink(missing_ok=True)


def _run(options: argparse.Namespace, label: str, path: Path, state: Path) -> None:
    loaded = {label: makers(options, [options.model], [label])[label]()}
    tell_untrained(options, loaded)
    data = images(options, path.parent, loaded, Share())
    with own_warnings(options):
        try:
            found = fingerprint(
                loaded[label].module,
                data,
                path,
                layers=options.layers,
                input=view(label),
                dtype=options.dtype,
                about=loaded[label].provenance | {"name": label},
                checkpoint=state,
                resume=True,  # a state that is there has been agreed to
                save_every=options.save_every,
                **measure_options(options),
            )
        except BaseException:
            if state.exists():
                tell(options, "--resume goes on from here")
            raise
    if not options.quiet:
        size = path.stat().st_size / 1e6
        print(f"{label}: {len(found.layers)} layers, {found.n_examples} images, {size:.1f} MB")
        tell(options, f"compare it: fastcka compare {path} OTHER{SUFFIX}")
