"""Rows of results: one JSON line a measurement, written at once, and the table at the end."""

import json

KEYS = (
    *("op", "variant", "shape", "n", "p", "layers", "dtype"),
    *("median_us", "p20_us", "p80_us", "rounds", "enqueue_us"),
    *("gb_per_s", "tflop_per_s", "floor_us", "share_of_floor", "error"),
    *("why", "note"),  # why there is no time; anything else worth knowing
)
CASE = KEYS[:1] + KEYS[2:7]


class Rows:
    """Appends rows to a file, each with all of `KEYS` and where it comes from."""

    def __init__(self, path, provenance):
        self.path = path
        self._provenance = provenance
        self.all = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **values):
        unknown = values.keys() - set(KEYS)
        if unknown:
            raise KeyError(f"no such column: {', '.join(unknown)}")
        row = dict.fromkeys(KEYS) | values
        self.all.append(row)
        # Opened and closed for every row: a kill loses nothing.
        with self.path.open("a") as file:
            file.write(json.dumps(row | self._provenance, allow_nan=False) + "\n")

    def table(self):
        """One line a case: each variant's time, share of the floor and error."""
        cases = {}
        for row in self.all:
            cases.setdefault(tuple(row[key] for key in CASE), []).append(row)
        return "\n".join(map(_line, cases.values()))


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
    return f"{row['variant']} {' '.join(numbers)} err {row['error']:.1e}"
