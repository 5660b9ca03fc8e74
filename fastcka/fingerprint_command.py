"""From the name of a model and a folder of images to a file of its own: `fastcka fingerprint`."""

import argparse
import re
from pathlib import Path

from fastcka import models
from fastcka.command import (
    RESULTS,
    check_used,
    images,
    measure_options,
    networks,
    own_warnings,
    tell,
    view,
)
from fastcka.fingerprinting import fingerprint
from fastcka.fingerprints import SUFFIX
from fastcka.launch import processes


def run(options: argparse.Namespace) -> None:
    """`fastcka fingerprint`, with its options as parsed."""
    check_used(options)
    options.silent = False
    (label,) = models.labels([options.model])
    path = Path(options.output or RESULTS / (re.sub(r"[^\w.@()]+", "_", label) + SUFFIX))
    if path.suffix != SUFFIX:
        raise ValueError(f"--output must end in {SUFFIX}, but is {path}")
    if path.exists() and not options.overwrite:
        raise ValueError(f"{path} is there already: give another --output, or add --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    with processes(options.threads) as share:
        if share.ranks > 1:
            raise ValueError("a fingerprint is written by one process: start it without torchrun")
        loaded = networks(options, [options.model], [label])
        data = images(options, path.parent, loaded, share)
        with own_warnings(options):
            found = fingerprint(
                loaded[label].module,
                data,
                path,
                layers=options.layers,
                input=view(label),
                dtype=options.dtype,
                about=loaded[label].provenance | {"name": label},
                **measure_options(options),
            )
    if not options.quiet:
        size = path.stat().st_size / 1e6
        print(f"{label}: {len(found.layers)} layers, {found.n_examples} images, {size:.1f} MB")
        tell(options, f"compare it: fastcka compare {path} OTHER{SUFFIX}")
