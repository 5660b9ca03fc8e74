"""What CKA costs beside the networks: time, memory and error of a whole comparison.

    python bench/end_to_end.py             # ViT-B/16 and ResNet-50, all leaves, n = 64: minutes
    python bench/end_to_end.py --smoke     # the same code on small networks

The CKA part is the time within the Gram matrices and all that follows them. It is also the
difference to the bare forward passes of the same round, but these alone vary by more than it.
"""

import argparse
import resource
import statistics
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import plain
import timm
import torch
from provenance import provenance
from rows import Rows

import fastcka
from fastcka import MinibatchCKA
from fastcka.capture import Capture
from fastcka.gram_stack import GramStack

ROOT = Path(__file__).resolve().parent
FULL = ("vit_base_patch16_224", "resnet50", 224, 64)
SMALL = ("test_vit", "test_resnet", 64, 16)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small networks: no speed to learn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", default="leaves", help="leaves or blocks")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "cpu_end_to_end.jsonl")
    options = parser.parse_args(arguments)
    name_a, name_b, size, n = SMALL if options.smoke else FULL
    torch.manual_seed(0)
    # Last norms that are not zero: no layer is constant.
    a = timm.create_model(name_a).eval()
    b = timm.create_model(name_b, zero_init_last=False).eval()
    x = torch.randn(n, 3, size, size)
    rows = Rows(options.output, provenance())
    case = {"op": "compare", "shape": f"{name_a} x {name_b} {options.layers}", "n": n}

    def forward():
        with torch.no_grad():
            return a(x), b(x)

    # Before anything else has used memory: its peak is that of the process.
    forward()
    bare = peak()
    ours = partial(fastcka.compare, a, b, [x], layers_a=options.layers, progress=False)
    result = ours()
    above = peak() - bare
    layers_a, layers_b = (taps(model, options.layers, x) for model in (a, b))
    widest = max(*layers_a.values(), *layers_b.values())
    stacks = (len(layers_a) + len(layers_b)) * 8 * (n * (n - 1) // 2 + 2 * n + 7)
    theirs = partial(plain.compare, a, b, [x], list(layers_a), list(layers_b))
    calls = {"forward": forward, "fastcka": ours, "plain": theirs}
    parts = {
        "forward": (),
        "fastcka": ((GramStack, "put"), (GramStack, "joined"), (MinibatchCKA, "add")),
        "plain": ((plain, "gram"), (plain, "centred"), (plain, "pairs")),
    }
    times = {variant: [] for variant in calls}
    within = {variant: [] for variant in calls}
    for _ in range(options.rounds):
        for variant, call in calls.items():
            with stopwatch(parts[variant]) as spent:
                start = time.perf_counter()
                call()
                times[variant].append((time.perf_counter() - start) * 1e6)
            within[variant].append(spent[0])
    # The same activations, multiplied in float64.
    double_a, double_b = (
        [fastcka.Tap(name, select=torch.Tensor.double) for name in layers]
        for layers in (layers_a, layers_b)
    )
    truth = fastcka.compare(a, b, [x], layers_a=double_a, layers_b=double_b).cka
    errors = {"fastcka": result.cka, "plain": theirs()}
    errors = {variant: float(abs(cka - truth).max()) for variant, cka in errors.items()}
    for variant, series in times.items():
        beyond = [one - bare for one, bare in zip(series, times["forward"], strict=True)]
        note = (
            f"CKA part {statistics.median(within[variant]):.3f} s; beyond the forward passes "
            f"{statistics.median(beyond) / 1e6:.3f} s"
        )
        if variant == "fastcka":
            note += (
                f"; peak memory above the forward passes {above / 2**20:.0f} MiB, Gram stacks "
                f"{stacks / 2**20:.0f} MiB, largest activation {widest / 2**20:.0f} MiB"
            )
        fifths = statistics.quantiles(series, n=5, method="inclusive")
        rows.add(
            **case,
            variant=variant,
            layers=len(layers_a) + len(layers_b),
            dtype="float32",
            median_us=statistics.median(series),
            p20_us=fifths[0],
            p80_us=fifths[3],
            rounds=len(series),
            error=errors.get(variant),
            note=note if variant != "forward" else None,
        )
        print(
            f"{variant:<8} {statistics.median(series) / 1e6:.3f} s; {note}; {errors.get(variant)}"
        )
    ratio = statistics.median(within["fastcka"]) / statistics.median(within["plain"])
    print(f"CKA part of fastcka over plain torch: {ratio:.2f}")
    print(f"memory above the forward passes over the limit: {above / (stacks + 2 * widest):.2f}")


@contextmanager
def stopwatch(functions):
    """The seconds spent in functions, (owner, name) each; none of them calls another."""
    spent = [0.0]

    def timed(call):
        def run(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - start

        return run

    with ExitStack() as stack:
        for owner, name in functions:
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        yield spent


def taps(model, layers, x):
    """The bytes of the activation of every layer, by its name, as executed."""
    sizes = {}
    hooks = Capture(model, layers)
    with torch.no_grad():
        hooks.run(
            lambda net: net(x), len(x), lambda name, y: sizes.update({name: y.numel() * y.itemsize})
        )
    return sizes


def peak():
    """The highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
