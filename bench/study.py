"""What the study's measurements cost beside the forward passes they need.

`python bench/study.py` measures, `--output FILE` keeps the rows. A row is a ratio of times within
one run: the pass with an observer over the bare one, in turn; of CKA, all that is beside the
forward pass over the Gram matrices alone, on activations of the same shapes.

On a machine that does other things too, several threads want `OMP_WAIT_POLICY=passive`: a thread
that waits for another spins, so that a barrier lasts as long as what else runs, and observers have
more barriers than the pass.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from provenance import provenance
from rows import Rows

from fastcka import MinibatchCKA, models
from fastcka.analysis.attention_distance import AttentionDistance
from fastcka.analysis.skip_connections import SkipConnections
from fastcka.analysis.token_features import token_features
from fastcka.capture import Capture
from fastcka.kernels import gram

ROUNDS = 7
NETWORKS = ("fastcka_vit_mini", "vit_small_patch16_224")
IMAGES = {"fastcka_vit_mini": 64, "vit_small_patch16_224": 8}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file of rows, .jsonl")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    rows = Rows(options.output, provenance())
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in NETWORKS:
            torch.manual_seed(0)
            model = models.load(name).module
            side = model.pretrained_cfg["input_size"][-1]
            images = torch.randn(IMAGES[name], 3, side, side)
            with torch.no_grad():
                observe(rows, name, model, images)
                compare(rows, name, model, images)
    print(rows.table())


def observe(rows, name, model, images):
    """Each observer's pass over the bare one, in turn."""
    observers = {
        "attention distance": AttentionDistance(),
        "skip connections": SkipConnections(),
        "features for probes": token_features(model, "blocks", "gap"),
    }
    times = {what: [] for what in ("forward", *observers)}
    for turn in range(ROUNDS + 1):
        for what in times:
            started = time.perf_counter()
            if what == "forward":
                model(images)
            else:
                with observers[what].watching(model, len(images)):
                    model(images)
            if turn:  # the first sets things up
                times[what].append(time.perf_counter() - started)
    for what, seconds in times.items():
        ratios = [one / bare for one, bare in zip(seconds, times["forward"], strict=True)]
        report(rows, name, what, images, seconds, statistics.median(ratios), "of the bare pass")


def compare(rows, name, model, images):
    """What CKA of the paper's layers takes beside the forward pass, over its Gram matrices."""
    shapes = {}
    Capture(model, "raghu").run(
        lambda net: net(images), len(images), lambda layer, x: shapes.update({layer: x.clone()})
    )
    cka = MinibatchCKA(list(shapes))
    grams, ours = [], []
    for turn in range(ROUNDS + 1):
        started = time.perf_counter()
        for x in shapes.values():
            gram(x)
        between = time.perf_counter()
        cka.update(shapes)
        if turn:
            grams.append(between - started)
            ours.append(time.perf_counter() - between)
    ratios = [one / bare for one, bare in zip(ours, grams, strict=True)]
    report(rows, name, "gram", images, grams, 1.0, "of the Gram matrices")
    report(rows, name, "CKA", images, ours, statistics.median(ratios), "of the Gram matrices")


def report(rows, name, what, images, seconds, ratio, of):
    low, _, _, high = statistics.quantiles(seconds, n=5)
    median = statistics.median(seconds)
    rows.add(
        op=f"study: {name}",
        variant=what,
        n=len(images),
        median_us=median * 1e6,
        p20_us=low * 1e6,
        p80_us=high * 1e6,
        rounds=len(seconds),
        note=f"{ratio:.3f} {of}",
    )
    threads = torch.get_num_threads()
    print(f"{name}, {threads} threads: {what}, {1e3 * median:.1f} ms, {ratio:.3f} {of}", flush=True)


if __name__ == "__main__":
    main()
