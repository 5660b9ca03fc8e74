"""Stored rows, read again: of each case the last ones, ours beside the best baseline."""

import json
from typing import NamedTuple

from rows import CASE, KEYS, ours_and_best


class Compared(NamedTuple):
    """A Gram case. Where ours was not timed, its row says why."""

    ours: dict
    best: dict | None

    @property
    def times_faster(self):
        if self.best is None or self.ours["median_us"] is None:
            return None
        return self.best["median_us"] / self.ours["median_us"]


def read(path):
    """The rows of a file; early ones lack columns that came later."""
    if not path.exists():
        return []
    return [dict.fromkeys(KEYS) | json.loads(line) for line in path.read_text().splitlines()]


def newest(rows):
    """case -> its rows, of each variant the last one."""
    last = {}
    for row in rows:
        last[tuple(row[key] for key in CASE), row["variant"]] = row
    cases = {}
    for (case, _), row in last.items():
        cases.setdefault(case, []).append(row)
    return cases


def compared(cases):
    """Each Gram case, from narrow to wide layers."""
    found = []
    for rows in cases.values():
        if rows[0]["op"] not in ("gram", "gram_finish"):
            continue
        ours, _ = ours_and_best(rows)
        ours = ours or next((row for row in rows if row["variant"].startswith("fastcka")), rows[0])
        # A ratio across runs would compare neighbours and machines.
        _, best = ours_and_best([row for row in rows if row["date"] == ours["date"]])
        found.append(Compared(ours, best))
    order = ("layers", "p", "n", "dtype", "operand", "threads")
    return sorted(found, key=lambda pair: [str(pair.ours[key] or "").rjust(9) for key in order])


def name(row):
    return row["shape"] if row["layers"] is None else f"{row['layers']} × {row['shape']}"


def kind(row):
    """The type of the values, and of what is multiplied where that was asked for."""
    return row["dtype"] if row["operand"] is None else f"{row['dtype']} as {row['operand']}"


def threads(row):
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
