"""A result as a table of pandas or xarray, neither of which fastcka needs otherwise."""

import importlib
import numbers

ENOUGH = 19  # permutations for scores at the usual level


def long_table(result):
    """A DataFrame with one row a pair of layers, row after row of the matrix."""
    table = _library("pandas").DataFrame(
        {
            "layer_a": [a for a in result.layers_a for _ in result.layers_b],
            "layer_b": [b for _ in result.layers_a for b in result.layers_b],
            "cka": result.cka.ravel(),
            "stderr": result.stderr.ravel(),
            **{name: values.ravel() for name, values in _of_pairs(result).items()},
        }
    )
    table.attrs = dict(result.meta)
    return table


def dataset(result):
    """A Dataset of all arrays; the axes have two names as their layers may be the same."""
    both = ("layer_a", "layer_b")
    scalars = {k: v for k, v in result.meta.items() if isinstance(v, str | numbers.Number)}
    return _library("xarray").Dataset(
        {
            "cka": (both, result.cka),
            "stderr": (both, result.stderr),
            "hsic_ab": (both, result.hsic_ab),
            "hsic_aa": ("layer_a", result.hsic_aa),
            "hsic_bb": ("layer_b", result.hsic_bb),
            **{name: (both, values) for name, values in _of_pairs(result).items()},
            **{
                name: (f"layer_{name[-1]}", values)
                for name, values in result.also.items()
                if values.ndim == 1
            },
        },
        coords={"layer_a": list(result.layers_a), "layer_b": list(result.layers_b)},
        attrs=scalars | {"n_examples": result.n_examples, "n_batches": result.n_batches},
    )


def _of_pairs(result) -> dict:
    """What there is beside CKA and its error for every pair of layers."""
    found = {name: values for name, values in result.also.items() if values.ndim == 2}
    if result.null is not None:
        found["p_value"] = result.p_values()
        if len(result.null) >= ENOUGH:
            found["calibrated"] = result.calibrated()
    return found


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this table is one of {name}: pip install {name}") from error
