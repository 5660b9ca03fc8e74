"""What CKA costs beside the networks: time, memory and error of a whole comparison.

    python bench/end_to_end.py             # ViT-B/16 and ResNet-50, n = 64: most of an hour
    python bench/end_to_end.py --smoke     # the same code on small networks

Every variant has a process of its own, and they take turns. README.md beside this file says how to
read the rows.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from peers import PEERS
from provenance import provenance
from rows import Rows
from worker import Gone, Networks, Worker

RESULTS = Path(__file__).resolve().parent / "results"
FULL = ("vit_base_patch16_224", "resnet50", 224, 64)
SMALL = ("test_vit", "test_resnet", 64, 16)
VARIANTS = ("fastcka", "plain", "compiled", *PEERS)


def main(arguments=None):
    options = _options(arguments)
    rows = Rows(options.output, provenance())
    for layers in ("blocks", "leaves") if options.layers == "both" else (options.layers,):
        networks = Networks(*(SMALL if options.smoke else FULL), layers)
        for row in compare(networks, options.variants, options.rounds, options.limit):
            rows.add(**row)
            print(line(row), flush=True)


def compare(networks, variants, rounds, limit):
    """The rows of one pair of networks: one a variant, that of the bare forward passes first."""
    case = {
        "op": "compare",
        "shape": f"{networks.a} x {networks.b} {networks.layers}",
        "n": networks.n,
        "dtype": "float32",
    }
    exact = Worker("float64", networks)
    truth = exact.ask(limit)["cka"]
    exact.stop()
    case["layers"] = sum(truth.shape)

    answers, why = in_turns(networks, ("forward", *variants), rounds, limit)
    for variant, (first, *calls) in answers.items():
        row = case | {"variant": variant, "note": first["note"]}
        if variant in why:
            row["why"] = why[variant]
        else:
            row |= summary(calls, answers["forward"][1:])
        if first["cka"] is not None:
            row |= judged(first["cka"], truth, first["note"])
        yield row


def in_turns(networks, variants, rounds, limit):
    """What each variant answered, its result first; and why one has not answered to the end."""
    workers, why = {}, {}
    answers = {variant: [] for variant in variants}
    for turn in range(rounds + 1):
        for variant in variants:
            if variant in why:
                continue
            try:
                if turn == 0:
                    workers[variant] = Worker(variant, networks)
                answers[variant].append(workers[variant].ask(limit))
            except Gone as gone:
                why[variant] = str(gone)
    for worker in workers.values():
        worker.stop()
    for variant in why:
        answers[variant] = answers[variant] or [{"cka": None, "note": None}]
    return answers, why


def summary(series, forward):
    """The columns of time and memory."""
    times = [one["us"] for one in series]
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    columns = {
        "median_us": statistics.median(times),
        "p20_us": fifths[0],
        "p80_us": fifths[3],
        "rounds": len(times),
        "peak_mb": None if series[0]["above"] is None else max(s["above"] for s in series) / 1e6,
    }
    if series[0]["cka_us"] is not None:
        columns["cka_us"] = statistics.median(one["cka_us"] for one in series)
    if series != forward:
        # Forward passes vary by more than CKA takes: the difference is taken within a round.
        beyond = [one["us"] - bare["us"] for one, bare in zip(series, forward, strict=True)]
        bare = statistics.median(one["us"] for one in forward)
        columns["cka_share"] = statistics.median(beyond) / bare
    return columns


def judged(cka, truth, note):
    """The largest difference of a CKA to float64; and what is to be said about it."""
    if cka.shape != truth.shape:
        remark = f"{list(cka.shape)} values, asked for were {list(truth.shape)}"
        return {"error": None, "note": joined(note, remark)}
    off = np.abs(cka - truth)
    remarks = []
    if not np.isfinite(cka).all():
        remarks.append(f"{np.count_nonzero(~np.isfinite(cka))} of {cka.size} values are not finite")
    if cut := np.count_nonzero(np.isin(cka, (0, 1)) & ~np.isin(truth, (0, 1))):
        remarks.append(f"{cut} of {cka.size} values are cut off at 0 or 1")
    if same := overwritten(cka, truth) + overwritten(cka.T, truth.T):
        remarks.append(f"{same} layers have the values of the next one, which wrote over them")
    worst = float(off.max())
    return {
        "error": worst if np.isfinite(worst) else None,
        "note": joined(note, *remarks),
    }


def overwritten(cka, truth):
    """Rows that are equal to the next row, and should not be: an in-place ReLU after a norm."""
    same = np.isclose(cka[:-1], cka[1:], rtol=0, atol=1e-7).all(1)
    same &= ~np.isin(cka[:-1], (0, 1)).all(1)  # these are equal since they are cut off
    return int((same & ~np.isclose(truth[:-1], truth[1:], rtol=0, atol=1e-4).all(1)).sum())


def joined(*remarks):
    return "; ".join(remark for remark in remarks if remark) or None


def line(row):
    title = f"{row['shape']} {row['variant']}:"
    if row.get("why"):
        return f"{title} {row['why']}"
    numbers = [f"{row['median_us'] / 1e6:.3f} s"]
    if row["peak_mb"] is not None:
        numbers.append(f"{row['peak_mb']:.0f} MB")
    if row.get("cka_share") is not None:
        numbers.append(f"CKA {row['cka_share']:.1%} of the forward passes")
    if row.get("cka_us") is not None:
        numbers.append(f"its part {row['cka_us'] / 1e6:.3f} s")
    if row.get("error") is not None:
        numbers.append(f"error {row['error']:.1e}")
    return f"{title} {', '.join(numbers)}" + (f"; {row['note']}" if row["note"] else "")


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small networks: no speed to learn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", choices=("blocks", "leaves", "both"), default="both")
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="default: all"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds a call; default 300")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_end_to_end.jsonl")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds must be 2 or more, for a spread, but is {options.rounds}")
    if options.smoke and options.output.is_relative_to(RESULTS):
        parser.error("--smoke needs --output, so that its rows do not mix with results")
    return options


if __name__ == "__main__":
    main()
