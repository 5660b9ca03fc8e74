"""A result in short: for people to read, and for programs that do not read safetensors."""

import numpy as np

from fastcka.result import CKAResult, CKAResults

# Of `meta`: what stands elsewhere in the summary, or is one number a layer.
LEFT_OUT = ("models", "conditioning_a", "conditioning_b")
# Beyond so many layers, only every second, third, … is printed.
PRINTED = 24
# Images of a pair of layers whose influence is told.
TOLD = 5
# Batches from which standard errors make intervals that hold.
ENOUGH = 10


def best_matches(result: CKAResult) -> list[dict]:
    """For every layer of the first model, the layer of the second with the highest CKA.

    `layer`, `match`, `cka`, `stderr`; of a model with itself, the best other layer. None where no
    value is finite.

    >>> import numpy as np, fastcka
    >>> x = np.random.default_rng(0).normal(size=(32, 5))
    >>> cka = fastcka.MinibatchCKA(["x"], ["noise", "x"])
    >>> import torch
    >>> x, noise = torch.from_numpy(x), torch.randn(32, 3)
    >>> best_matches(cka.update([x], [noise, -x]).compute())[0]["match"]
    'x'
    """
    values = np.where(np.isfinite(result.cka), result.cka, -np.inf)
    if len(result.models) == 1:
        np.fill_diagonal(values, -np.inf)
    rows = []
    for i, layer in enumerate(result.layers_a):
        j = int(values[i].argmax())
        found = np.isfinite(values[i, j])
        rows.append(
            {
                "layer": layer,
                "match": result.layers_b[j] if found else None,
                "cka": float(values[i, j]) if found else None,
                "stderr": _number(result.stderr[i, j]) if found else None,
            }
        )
    return rows


def most_influential(result: CKAResult, count: int = TOLD) -> list[dict]:
    """Of every pair in `result.influence` the images that change CKA most, either way.

    `layer_a`, `layer_b`, and `images`: `image`, its name or its place from 0 on, and `influence`.

    >>> import fastcka, torch
    >>> x = torch.arange(8.0)[:, None]
    >>> y = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, -50])[:, None]
    >>> cka = fastcka.MinibatchCKA(["x"], ["y"], influence=[("x", "y")])
    >>> most_influential(cka.update([x], [y]).compute(), 1)[0]["images"][0]["image"]
    7
    """
    found = []
    for (a, b), changes in result.influence.items():
        order = np.argsort(-np.abs(changes), kind="stable")  # NaN comes last
        known = [i for i in order[:count].tolist() if np.isfinite(changes[i])]
        images = range(len(changes)) if result.images is None else result.images
        told = [{"image": images[i], "influence": float(changes[i])} for i in known]
        found.append({"layer_a": a, "layer_b": b, "images": told})
    return found


def summary(result: CKAResult | CKAResults) -> dict:
    """What a result says, with six digits of CKA; JSON can hold it."""
    pairs = result if isinstance(result, CKAResults) else {None: result}
    each = [
        {
            "models": list(one.models),
            "mean_cka": _number(np.nanmean(one.cka) if np.isfinite(one.cka).any() else np.nan),
            "best_matches": best_matches(one),
            "layers_a": list(one.layers_a),
            "layers_b": list(one.layers_b),
            "cka": _matrix(one.cka),
            **({} if one.null is None else {"p_values": _matrix(one.p_values())}),
            "also": {name: _matrix(values) for name, values in one.also.items()},
            "influence": most_influential(one),
        }
        for one in pairs.values()
    ]
    between = result.between_models() if isinstance(result, CKAResults) else {}
    first = next(iter(pairs.values()))
    models = []
    for one in pairs.values():
        models += [model for model in one.meta.get("models", {}).values() if model not in models]
    return {
        "n_examples": first.n_examples,
        "n_batches": first.n_batches,
        "warnings": list(dict.fromkeys(told for one in pairs.values() for told in one.warnings)),
        "pairs": each,
        "between_models": {
            model: {other: _number(value) for other, value in row.items()}
            for model, row in between.items()
        },
        "models": models,
        "provenance": {key: value for key, value in first.meta.items() if key not in LEFT_OUT},
    }


def in_words(result: CKAResult | CKAResults) -> str:
    """A few lines: what was compared, and the best match of every layer."""
    if isinstance(result, CKAResults):
        across = [one for one in result.values() if len(one.models) > 1]
        table = [_between(result)] if len(across) > 1 else []
        return "\n\n".join([*map(in_words, across), *table])
    rows = best_matches(result)
    step = -(-len(rows) // PRINTED)
    wide = max(len(row["layer"]) for row in rows)
    within = len(result.models) == 1
    lines = [
        f"{result.models[0]} with itself" if within else " and ".join(result.models),
        f"{len(result.layers_a)} x {len(result.layers_b)} layers, {result.measured}",
        f"most alike{' of the others' if within else ''}, CKA{_errors(result)}:",
    ]
    for row in rows[::step]:
        if row["match"] is None:
            lines.append(f"  {row['layer']:<{wide}}  no value")
            continue
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.3f}"
        lines.append(f"  {row['layer']:<{wide}}  {row['cka']:.3f}{error}  {row['match']}")
    if result.null is not None:
        lines.append(_chance(result))
    if step > 1:
        lines.append(f"  one layer in {step}; all are in the files")
    for pair in most_influential(result):
        layers = f"{pair['layer_a']} and {pair['layer_b']}"
        lines.append(f"what single images do to the CKA of {layers}, the largest:")
        lines += [f"  {one['influence']:+.2e}  {one['image']}" for one in pair["images"]]
    return "\n".join(lines)


def _between(results: CKAResults) -> str:
    """The table of models, a line each."""
    table = results.between_models()
    wide = max(map(len, table))
    columns = [max(len(name), 5) for name in table]
    lines = ["best match of a layer, mean CKA over the layers of the model in front:"]
    heads = (f"{name:>{column}}" for name, column in zip(table, columns, strict=True))
    lines.append("  ".join([" " * (wide + 2), *heads]).rstrip())
    for name, row in table.items():
        cells = (
            f"{row.get(other, np.nan):>{column}.3f}"
            for other, column in zip(table, columns, strict=True)
        )
        lines.append("  ".join([f"  {name:<{wide}}", *cells]))
    return "\n".join(lines)


def _chance(result: CKAResult) -> str:
    p = result.p_values()
    if len(result.models) == 1:
        p = p[np.tril_indices(len(p), -1)]
    p = p[np.isfinite(p)]
    least = len(result.null) + 1
    if least < 20:
        return f"  p is 1/{least} at best: {least - 1} random orders are too few to tell"
    return f"  p <= 0.05 in {np.count_nonzero(p <= 0.05)} of {p.size} pairs of layers"


def _errors(result: CKAResult) -> str:
    blocks = result.meta["n_blocks"]
    if blocks < 2:
        return " (one batch has no standard errors)"
    which = " of one pass" if result.meta.get("passes", 1) > 1 else ""
    rough = f", rough from {blocks} batches" if blocks < ENOUGH else ""
    return f" ± standard error{rough}{which}"


def _matrix(values: np.ndarray) -> list:
    """With six digits; also a vector."""
    if values.ndim == 1:
        return [_number(value) for value in values.round(6)]
    return [_matrix(row) for row in values]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
