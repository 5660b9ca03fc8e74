"""Rows of results: one JSON line a measurement, written at once, and the table at the end."""

import json
import re

import torch
from provenance import ROOT

KEYS = (
    *("op", "variant", "shape", "n", "p", "layers", "dtype", "operand", "threads"),
    *("median_us", "p20_us", "p80_us", "rounds", "enqueue_us"),
    *("gb_per_s", "tflop_per_s", "floor_us", "share_of_floor", "error", "peak_mb"),
    *("cka_us", "cka_share"),  # of a whole comparison
    *("why", "note"),  # why there is no time; anything else worth knowing
)
CASE = KEYS[:1] + KEYS[2:9]


def result_file(device, ending=""):
    """Where the rows of a device are kept."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return ROOT / "bench" / "results" / f"{name}{ending}.jsonl"


class Rows:
    """Appends rows to a file, each with all of `KEYS` and where it comes from; None only keeps."""

    def __init__(self, path, provenance):
        self.path = path
        self.provenance = provenance
        self.all = []
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **values):
        unknown = values.keys() - set(KEYS)
        if unknown:
            raise KeyError(f"no such column: {', '.join(unknown)}")
        row = dict.fromkeys(KEYS) | {"threads": torch.get_num_threads()} | values
        self.all.append(row)
        if self.path:
            # Opened and closed for every row: a kill loses nothing.
            with self.path.open("a") as file:
                file.write(json.dumps(row | self.provenance, allow_nan=False) + "\n")

    def table(self):
        """One line a case: each variant's time, share of the floor and error."""
        cases = {}
        for row in self.all:
            cases.setdefault(tuple(row[key] for key in CASE), []).append(row)
        return "\n".join(map(_line, cases.values()))


def ours_and_best(rows):
    """Of the rows of a case: that of fastcka's first choice, and the fastest of all others."""
    timed = [row for row in rows if row["median_us"] is not None]
    ours = [row for row in timed if row["variant"].startswith("fastcka")]
    others = [row for row in timed if not row["variant"].startswith("fastcka")]
    return next(iter(ours), None), min(others, key=lambda row: row["median_us"], default=None)


def _line(rows):
    case = rows[0]
    title = " ".join([case["op"], *(f"{k}={case[k]}" for k in CASE[2:] if case[k] is not None)])
    floors = [row["floor_us"] for row in rows if row["floor_us"] is not None]
    floor = f" floor {floors[0]:.2f} us" if floors else ""
    return f"{title}{floor} | " + " | ".join(_cell(row) for row in rows)


def _cell(row):
    if row["median_us"] is None:
        return f"{row['variant']}: {row['why'] or row['note']}"
    numbers = [f"{row['median_us']:.1f} us"]
    if row["share_of_floor"] is not None:
        numbers.append(f"{row['share_of_floor']:.0%}")
    else:
        numbers.append(f"{row['tflop_per_s'] or 0:.1f} TFLOP/s {row['gb_per_s'] or 0:.0f} GB/s")
    if row["error"] is not None:
        numbers.append(f"err {row['error']:.1e}")
    return f"{row['variant']} {' '.join(numbers)}"
