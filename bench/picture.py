"""The picture of README.md: how many times as fast as the best baseline."""

from comparisons import name, threads

DTYPES = ("float32", "float16")
# Colours that colour-blind people can tell apart [Okabe & Ito 2008], with a marker each.
LOOKS = {64: ("#0072B2", "o"), 256: ("#E69F00", "s"), 1024: ("#009E73", "^")}


def draw(grams, path):
    """A row a layer, a point a number of examples, all with the most threads that were timed."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    most = max(pair.ours["threads"] for pair in grams)
    shown = [pair for pair in grams if pair.times_faster and pair.ours["threads"] == most]
    dtypes = [d for d in DTYPES if any(pair.ours["dtype"] == d for pair in shown)]
    labels = list(dict.fromkeys(label(pair.ours) for pair in shown))
    if not dtypes:
        return
    figure, axes = plt.subplots(
        1,
        len(dtypes),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
        figsize=(9, 1.2 + 0.5 * len(labels)),
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for n, (colour, marker) in LOOKS.items():
            points = [
                (pair.times_faster, labels.index(label(pair.ours)))
                for pair in shown
                if (pair.ours["dtype"], pair.ours["n"]) == (dtype, n)
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker, color=colour, ms=8, label=f"n = {n}")
        axis.axvline(1, color="0.4", lw=1)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.3g}×")
        axis.set_title(f"{dtype}, {threads(shown[0].ours)}")
        axis.set_xlabel("times as fast as the best baseline")
        axis.grid(axis="x", color="0.9")
        axis.set_yticks(range(len(labels)), labels)
    axes[0, 0].invert_yaxis()
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def label(row):
    return f"{name(row)}\np = {row['p']:,}"
