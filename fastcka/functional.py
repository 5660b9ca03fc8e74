"""CKA and HSIC of two arrays, exact at any number of examples."""

import warnings
from typing import Any

import numpy as np
import torch

from fastcka import stored_features
from fastcka.jackknife import Sums, ratio
from fastcka.kernels.layout import as_rows
from fastcka.kernels.operations import check_activations, packed_length
from fastcka.options import check_options
from fastcka.warning import CKAWarning


def cka(
    x: Any,
    y: Any,
    *,
    estimator: str = "unbiased",
    gram: str = "linear",
    bandwidth: float | None = None,
) -> float:
    """Score how similarly two representations arrange the same examples.

    CKA(X, Y) = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)), K and L the n × n Gram matrices of X and Y
    [Kornblith et al. 2019], with the HSIC of `hsic`.

    Args:
        x: [n, ...], one row an example; NumPy array or torch tensor on any device, float16,
            bfloat16, float32 or float64.
        y: [n, ...] of the same examples in the same order; the widths may differ.
        estimator: "unbiased" needs n >= 4. "biased" is for comparison with older numbers: it tends
            to 1 for unrelated representations wider than n.
        gram: "linear" or "rbf".
        bandwidth: of the RBF, a multiple of the median distance: exp(−d²/(2σ²)), σ = bandwidth ·
            √median(d²) over all n² entries; None is 1.

    Returns:
        1 for representations equal up to rotation, scale and shift, on average 0 (biased: above 0,
        at most 1) for unrelated ones. The unbiased estimate may be slightly negative. NaN, with a
        `CKAWarning`, where one of them is constant or holds inf or NaN.

    Raises:
        TypeError: not an array of those types.
        ValueError: the numbers of examples differ, or are too small; an unknown option.
        RuntimeError: x and y are on different devices.

    Precision: CKA within 1e-5 of the float64 definition on the values as received, of magnitudes
    within 1e-38 to 1e38; float64 throughout where the examples outnumber the features.
    Cost: each of the three products takes 2n·p·q flop in feature space where either of its sides
    has fewer features than examples, else n²·(p + q); RBF takes n²·(p + q), and beyond 2048
    examples five times that. Memory stays below 1 GB beyond x and y at any n, provided that rows
    are dense (another layout is copied); beyond 2048 examples that costs 2 to 4 times the time of
    float32 products that hold all of K and L.

    >>> import numpy as np
    >>> from fastcka import cka
    >>> x = np.random.default_rng(0).normal(size=(100, 10))
    >>> round(cka(x, 0.1 * x[:, ::-1] + 5), 6)
    1.0
    """
    products = _inner_products(x, y, estimator, gram, bandwidth)
    for name, own, constant in (
        ("x", products.xx, products.x_constant),
        ("y", products.yy, products.y_constant),
    ):
        if not np.isfinite(own):
            warnings.warn(f"`{name}` holds inf or NaN; its CKA is NaN", CKAWarning, stacklevel=2)
            return float("nan")
        if constant:
            warnings.warn(
                f"`{name}` is constant: its centred Gram matrix holds nothing but rounding; "
                "its CKA is NaN",
                CKAWarning,
                stacklevel=2,
            )
            return float("nan")
    sums = Sums(*(np.array(value) for value in ([[products.xy]], [products.xx], [products.yy])))
    return float(ratio(sums)[0, 0])


def hsic(
    x: Any,
    y: Any,
    *,
    estimator: str = "unbiased",
    gram: str = "linear",
    bandwidth: float | None = None,
) -> float:
    """Measure how far two representations of the same examples depend on each other.

    unbiased: HSIC_1 = ⟨U(K), U(L)⟩ / (n(n−3)) [Song et al. 2012], U(K) the Gram matrix K of x
    without its diagonal and with rows that sum to 0, L that of y; biased: tr(KHLH) / (n−1)², with
    H = I − 1/n [Gretton et al. 2005].

    Args:
        x, y, estimator, gram, bandwidth: as in `cka`.

    Returns:
        On average 0 for independent representations (the biased estimate is above 0), in the unit
        of squared Gram entries. NaN where a value is inf or NaN, without a warning.

    Raises, cost: as in `cka`. Precision: 1e-5 of √(HSIC(K, K) · HSIC(L, L)).

    >>> import numpy as np
    >>> from fastcka import hsic
    >>> x = np.random.default_rng(0).normal(size=(100, 1))
    >>> bool(0.9 < hsic(x, x) / np.var(x) ** 2 < 1.1)
    True
    """
    products = _inner_products(x, y, estimator, gram, bandwidth)
    n = products.n
    return products.xy / (n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2)


def _inner_products(x, y, estimator, gram, bandwidth) -> stored_features.InnerProducts:
    check_options(estimator, gram, bandwidth)
    rows_x = _rows(x, "x")
    rows_y = rows_x if y is x else _rows(y, "y")
    if rows_x.shape[0] != rows_y.shape[0]:
        raise ValueError(
            f"`y` has {rows_y.shape[0]} examples but `x` has {rows_x.shape[0]}; "
            "CKA compares representations of the same examples"
        )
    if rows_x.device != rows_y.device:
        raise RuntimeError(
            f"`x` is on {rows_x.device} and `y` on {rows_y.device}; move one to the other"
        )
    if rows_x.is_meta:
        raise RuntimeError("`x` and `y` are on the meta device: they have no values")
    packed_length(rows_x.shape[0], estimator)  # refuses too few examples
    if gram == "rbf":
        return stored_features.gaussian(rows_x, rows_y, estimator, bandwidth or 1.0)
    return stored_features.linear(rows_x, rows_y, estimator)


def _rows(x: Any, name: str) -> torch.Tensor:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"`{name}` is a masked array; leave the masked examples out of both sides")
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize not in (2, 4, 8):
            raise TypeError(
                f"`{name}` must be float16, float32 or float64, but is {x.dtype}; "
                f"convert it, for example with `{name}.astype('float32')`"
            )
        if any(stride < 0 for stride in x.strides) or not x.dtype.isnative:
            x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of arrays that may not be written to
            x = torch.from_numpy(x)
    elif not isinstance(x, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a NumPy array or a torch tensor, but is {type(x).__name__}"
        )
    check_activations(x, name)
    return as_rows(x)
