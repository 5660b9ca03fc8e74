"""The section Speed of README.md and its picture, from the rows in results/.

`python bench/report.py` writes both; with `--check` it writes nothing, and ends with 1 where the
section is not what the rows give.
"""

import argparse
import statistics
import sys
from pathlib import Path

from comparisons import compared, kind, name, newest, read, threads
from picture import draw

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- written by bench/report.py -->\n", "<!-- until here -->\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "speed.png")
    options = parser.parse_args(arguments)
    grams = compared(newest(read(options.results / "cpu_gram.jsonl")))
    whole = newest(read(options.results / "cpu_end_to_end.jsonl"))
    text = options.readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        parser.error(f"{options.readme} must have the lines {BEGIN.strip()} and {END.strip()}")
    fresh = before + BEGIN + section(grams, whole, options.picture.name) + END + after
    if options.check:
        if fresh != text:
            print("README.md is not what the rows give: run `python bench/report.py`.")
        return int(fresh != text)
    options.readme.write_text(fresh)
    if grams:
        draw(grams, options.picture)
    return 0


def section(grams, whole, picture):
    parts = []
    if grams:
        parts += [summary(grams), f"![Times as fast as the best baseline](docs/{picture})\n"]
        table = gram_table(grams)
        parts.append(f"<details><summary>All cases</summary>\n\n{table}\n</details>\n")
    parts += [whole_table(rows) for rows in whole.values()]
    return "\n".join(["", *parts, ""]) if parts else ""


def summary(grams):
    timed = [pair for pair in grams if pair.times_faster]
    if not timed:
        return "No case was timed.\n"
    ratios = [pair.times_faster for pair in timed]
    lost = [
        f"{name(pair.ours)}, n = {pair.ours['n']}, {kind(pair.ours)}, {threads(pair.ours)}: "
        f"{pair.times_faster:.2f}"
        for pair in timed
        if pair.times_faster <= 1
    ]
    text = (
        "The Gram matrix of a layer on a CPU, centred, against the fastest of `torch.mm`, NumPy "
        "and SciPy's `ssyrk`, which do not centre: faster in "
        f"{len(ratios) - len(lost)} of {len(ratios)} cases; in the median "
        f"{statistics.median(ratios):.2f} times as fast, at worst {min(ratios):.2f}, at best "
        f"{max(ratios):.2f}."
    )
    return text + (f" Not faster: {'; '.join(lost)}.\n" if lost else "\n")


def gram_table(grams):
    titles = "layer|p|n|type|threads|fastcka|best baseline|times as fast|error|its error"
    lines = [row_of([*titles.split("|"), "share of floor"]), row_of(["---"] + ["--:"] * 10)]
    for pair in grams:
        (ours, best), ratio = pair, pair.times_faster
        share = ours["share_of_floor"]
        cells = [
            *(name(ours), f"{ours['p']:,}", ours["n"], kind(ours), ours["threads"]),
            duration(ours["median_us"]) if ours["median_us"] is not None else ours["why"],
            f"`{best['variant']}` {duration(best['median_us'])}" if best else "–",
            f"{ratio:.2f}" if ratio else "–",
            *(error(ours), error(best)),
            f"{share:.0%}" if share is not None else "–",
        ]
        lines.append(row_of(cells))
    return "\n".join([*lines, "", where([ours for ours, _ in grams]), ""])


def whole_table(rows):
    case = rows[0]
    lines = [
        f"{case['shape']}: {case['layers']} layers, n = {case['n']}, {threads(case)}.\n",
        row_of(["", "time", "beyond forward", "CKA part", "peak memory", "error", ""]),
        row_of(["---", *["--:"] * 5, "---"]),
    ]
    for row in rows:
        share = f"{row['cka_share']:.1%}" if row["cka_share"] is not None else "–"
        memory = f"{row['peak_mb']:,.0f} MB" if row["peak_mb"] is not None else "–"
        timed, part = duration(row["median_us"]), duration(row["cka_us"])
        remark = row["why"] or row["note"] or ""
        lines.append(row_of([row["variant"], timed, share, part, memory, error(row), remark]))
    return "\n".join([*lines, "", where(rows), ""])


def row_of(cells):
    return f"| {' | '.join(map(str, cells))} |"


def error(row):
    return f"{row['error']:.0e}" if row and row["error"] is not None else "–"


def duration(microseconds):
    """Three digits, in the unit that suits."""
    if microseconds is None:
        return "–"
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1)):
        value = microseconds / size
        if value >= 1 or unit == "µs":
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def where(rows):
    """Machine, versions and commits of the rows."""
    found = dict.fromkeys(
        f"{row['device']}, {row['machine']}, {row['isa']}, torch {row['torch']}, "
        f"commit {row['commit'][:7] if row['commit'] else 'unknown'}"
        f"{' with changes' if row['dirty'] else ''}, {row['date'][:10]}"
        for row in rows
    )
    return f"<sub>{'; '.join(found)}</sub>"


if __name__ == "__main__":
    sys.exit(main())
