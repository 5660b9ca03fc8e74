"""CKA of groups of attention heads, from local to global, with layers of another network."""

import numpy as np


def windows(hsic_heads, hsic_with, hsic_own, distances, k: int):
    """CKA of every k heads that are neighbours in mean attention distance with other layers.

    Linear Gram matrices of heads side by side add up, K = Σ_h K_h, and HSIC is linear in each, so
    HSIC(K, L) = Σ_h HSIC(K_h, L) and HSIC(K, K) = Σ_h Σ_g HSIC(K_h, K_g): no pass over the images
    for each group [Raghu et al. 2021, figure 5]. With any estimator of HSIC that is linear in both,
    and with sums of it over batches; not with RBF Gram matrices.

    Args:
        hsic_heads: [H, H], HSIC of the heads with each other.
        hsic_with: [H, M], of the heads with M other layers.
        hsic_own: [M], of each of these with itself.
        distances: [H], mean attention distance of each head.
        k: heads in a window, 1 to H.

    Returns:
        Mean distance of the heads of each window [H - k + 1], rising, and CKA [H - k + 1, M]; both
        float64. Heads of equal distance stay in order. NaN where a window or a layer has no HSIC
        with itself above 0.

    Raises:
        ValueError: shapes that do not belong together, or a `k` that is no number of heads.

    >>> heads = np.eye(3)  # independent of each other
    >>> windows(heads, [[0.5], [0.1], [0.9]], [1.0], [20, 30, 10], k=2)
    (array([15., 25.]), array([[0.98994949],
           [0.42426407]]))
    """
    heads, with_, own, distances = (
        np.asarray(x, dtype=np.float64) for x in (hsic_heads, hsic_with, hsic_own, distances)
    )
    count = len(distances) if distances.ndim == 1 else 0
    layers = len(own) if own.ndim == 1 else 0
    if heads.shape != (count, count) or with_.shape != (count, layers) or not (count and layers):
        raise ValueError(
            "`hsic_heads`, `hsic_with`, `hsic_own`, `distances` must be [H, H], [H, M], [M], [H], "
            f"but are {list(heads.shape)}, {list(with_.shape)}, {list(own.shape)}, "
            f"{list(distances.shape)}"
        )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= count:
        raise ValueError(f"`k` must be a number of heads from 1 to {count}, but is {k!r}")
    order = np.argsort(distances, kind="stable")
    groups = np.stack([order[first : first + k] for first in range(count - k + 1)])
    cross = with_[groups].sum(1)
    itself = heads[groups[:, :, None], groups[:, None]].sum((1, 2))
    square = itself[:, None] * own
    usable = (itself[:, None] > 0) & (own > 0)
    cka = np.where(usable, cross / np.sqrt(np.where(usable, square, 1)), np.nan)
    return distances[groups].mean(1), cka
