"""How the cost of a comparison grows: with models, images, features and layers.

    python bench/scaling.py             # some minutes on a CPU
    python bench/scaling.py --smoke     # the same code on less: no speed to learn

Three ViTs of 20 blocks in one pass, beside three comparisons of two and beside what cannot be
saved: the forward passes, each Gram matrix once, the products of all pairs. Then the time of
`MinibatchCKA` alone for growing numbers of images, features and layers, and the exponent of a power
law through it. README.md beside this file says how to read the rows.
"""

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path

import timm
import torch
from provenance import provenance
from rows import Rows

import fastcka
from fastcka import MinibatchCKA
from fastcka.capture import Capture
from fastcka.gram_stack import GramStack
from fastcka.kernels import hsic_pairs

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments=None):
    options = _options(arguments)
    rows = Rows(options.output, provenance())
    for measurement in (many_models, images, features, layers):
        for row in measurement(options.smoke):
            rows.add(**row)
            print(line(row), flush=True)


def many_models(smoke):
    """Three models in one pass, in turns with what it is compared to."""
    depth, n, count, rounds = (4, 8, 2, 2) if smoke else (20, 64, 2, 5)
    torch.manual_seed(0)
    models = {
        name: timm.create_model("vit_tiny_patch16_224", img_size=96, depth=depth).eval()
        for name in "abc"
    }
    batches = list(torch.randn(n * count, 3, 96, 96).split(n))
    pairs = list(itertools.combinations_with_replacement(models, 2))

    def one_pass():
        fastcka.compare_many(models, batches, progress=False)

    def three_runs():
        for a, b in itertools.combinations(models.values(), 2):
            fastcka.compare(a, b, batches, progress=False)

    @torch.no_grad()
    def at_least():
        for batch in batches:
            stacks = [_stack(model, batch) for model in models.values()]
            by_name = dict(zip(models, stacks, strict=True))
            for a, b in pairs:
                hsic_pairs(by_name[a].packed, None if a == b else by_name[b].packed)

    @torch.no_grad()
    def forward():
        for batch, model in itertools.product(batches, models.values()):
            model(batch)

    variants = {
        "one_pass": one_pass,
        "three_runs": three_runs,
        "at_least": at_least,
        "forward": forward,
    }
    case = {"op": "many_models", "shape": f"3 x vit_tiny {depth} blocks", "n": n}
    case |= {"layers": 3 * depth, "dtype": "float32"}
    for name, times in in_turns(variants, rounds).items():
        yield case | {"variant": name} | summary(times)


def images(smoke):
    """Batches of 64 images, 24 layers."""
    counts = (1, 2, 4) if smoke else (4, 8, 16, 32, 64)
    batch = [torch.randn(64, 3_072) for _ in range(24)]
    yield from power_law(
        "scaling_images", "n", {64 * count: [batch] * count for count in counts}, smoke
    )


def features(smoke):
    """One batch of 64 images, 24 layers of p features each."""
    widths = (512, 1024, 2048) if smoke else (4_096, 16_384, 65_536, 262_144)
    yield from power_law(
        "scaling_features",
        "p",
        {p: [[torch.randn(64, p) for _ in range(24)]] for p in widths},
        smoke,
    )


def layers(smoke):
    """One batch of 64 images, layers of 768 features each: many, and so narrow that pairs show."""
    counts = (8, 16, 32) if smoke else (64, 128, 256, 512)
    yield from power_law(
        "scaling_layers",
        "layers",
        {count: [[torch.randn(64, 768) for _ in range(count)]] for count in counts},
        smoke,
    )


def power_law(op, column, data, smoke):
    """A row a size, and the exponent through all of them in the last one's note."""

    def run(batches):
        cka = MinibatchCKA([str(i) for i in range(len(batches[0]))])
        for batch in batches:
            cka.update(batch)

    variants = {size: (lambda batches=batches: run(batches)) for size, batches in data.items()}
    medians = {}
    for size, times in in_turns(variants, 2 if smoke else 9).items():
        row = summary(times)
        medians[size] = row["median_us"]
        known = {"layers": len(data[size][0]), "p": data[size][0][0].shape[1], "n": 64}
        row |= {"op": op, "variant": "fastcka", "dtype": "float32"} | known | {column: size}
        if len(medians) > 1:
            row["note"] = f"grows as {column} to the power of {exponent(medians):.2f}"
        yield row


def exponent(medians):
    """The slope of the line of least squares through the logarithms."""
    x = [math.log(size) for size in medians]
    y = [math.log(value) for value in medians.values()]
    return statistics.linear_regression(x, y).slope


def in_turns(variants, rounds):
    """name -> seconds of each round, after one to warm up."""
    times = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times):
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return {
        "median_us": statistics.median(times) * 1e6,
        "p20_us": fifths[0] * 1e6,
        "p80_us": fifths[3] * 1e6,
        "rounds": len(times),
    }


def line(row):
    case = " ".join(f"{key}={row[key]}" for key in ("n", "p", "layers") if key in row)
    note = f"; {row['note']}" if row.get("note") else ""
    return f"{row['op']} {case} {row['variant']}: {row['median_us'] / 1e3:.1f} ms{note}"


def _stack(model, batch):
    """Each Gram matrix once, and nothing else: one call a layer, while the model runs."""
    capture, rows = Capture(model, "blocks"), []

    def put(layer, x):
        row = GramStack([layer], len(batch))
        row.put(0, x)
        rows.append(row)

    capture.run(lambda network: network(batch), len(batch), put)
    return GramStack.joined(rows)


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes: no speed to learn")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_scaling.jsonl")
    options = parser.parse_args(arguments)
    if options.smoke and options.output.is_relative_to(RESULTS):
        parser.error("--smoke needs --output, so that its rows do not mix with results")
    return options


if __name__ == "__main__":
    main()
