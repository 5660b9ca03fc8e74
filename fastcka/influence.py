"""What single images do to CKA: the pairs of layers asked for, and the closed form."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache

import torch

from fastcka.kernels import packed_place

# The model and the layer of either side.
Pair = tuple[tuple[str, str], tuple[str, str]]


def as_pairs(influence: Iterable, models: Sequence[str], many: bool) -> list[Pair]:
    """What a user gives for `influence`: each pair once, its models in the order of `models`.

    >>> as_pairs([("conv", "blocks.3")], ["a", "b"], many=False)
    [(('a', 'conv'), ('b', 'blocks.3'))]
    >>> as_pairs([(("vit", "blocks.3"), ("cnn", "conv"))], ["cnn", "vit"], many=True)
    [(('cnn', 'conv'), ('vit', 'blocks.3'))]
    """
    form = "((model, layer), (model, layer))" if many else "(layer_a, layer_b)"
    if isinstance(influence, str | Mapping) or not isinstance(influence, Iterable):
        raise TypeError(f"`influence` must be a list of pairs {form}, but is {influence!r}")
    found = []
    for pair in influence:
        if not (_are_two(pair, Sequence) and all(_are_two(e, str) for e in pair) if many
                else _are_two(pair, str)):  # fmt: skip
            raise TypeError(f"`influence` must be a list of pairs {form}, but holds {pair!r}")
        ends = map(tuple, pair) if many else zip((models[0], models[-1]), pair, strict=True)
        ends = tuple(ends)
        for model, _ in ends:
            if model not in models:
                raise ValueError(
                    f"`influence` names model {model!r}, but the models are {', '.join(models)}"
                )
        found.append(tuple(sorted(ends, key=lambda end: models.index(end[0]))))
    return list(dict.fromkeys(found))


def check_layers(pairs: Iterable[Pair], layers: Mapping[str, Sequence[str]]) -> None:
    """Every layer must be one of those that are compared, where its model is among these."""
    for model, layer in (end for pair in pairs for end in pair):
        if model in layers and layer not in layers[model]:
            near = get_close_matches(layer, layers[model], n=3) or layers[model][:3]
            raise ValueError(
                f"`influence` names layer {layer!r}, which is none of those compared of model "
                f"{model!r}; near are {', '.join(map(repr, near))}"
            )


@lru_cache(maxsize=2)  # batches are of one size, but for the last
def places_of_rows(n: int, estimator: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """Where each row of a matrix lies in its packed triangle: [n, n], or [n, n − 1] unbiased.

    >>> places_of_rows(4, "unbiased")[1]
    tensor([0, 2, 4])
    """
    one = torch.arange(n, device=device)
    places = packed_place(one[:, None], one, estimator)
    if estimator == "unbiased":
        places = places[one[:, None] != one].view(n, n - 1)
    return places


def without_each(product: torch.Tensor, places: torch.Tensor, estimator: str) -> torch.Tensor:
    """⟨K, L⟩ less the same without example i, for each: [n], from k·l of two packed triangles [m].

    Of U-centred matrices 2 c_i (n−2)/(n−3) with c_i = Σ_j u_ij v_ij; of H K H and H L H
    2 e_i n/(n−1) − f_i (n/(n−1))² with e_i = Σ_j c_ij d_ij and f_i = c_ii d_ii
    (maths/README.md, section 16).

    >>> from fastcka.kernels import gram_finish
    >>> product = gram_finish([torch.randn(8, 3).double()]).packed[0].square()
    >>> found = without_each(product, places_of_rows(8, "unbiased"), "unbiased")
    >>> (found.sum() / product.sum()).round(decimals=9)  # 2 (n−2)/(n−3)
    tensor(2.4000, dtype=torch.float64)
    """
    n = len(places)
    entries = product.index_select(0, places.view(-1)).view(places.shape)
    rows = entries.sum(1)  # of 2 k_ij l_ij off the diagonal, k_ii l_ii on it
    if estimator == "unbiased":
        return rows * (n - 2) / (n - 3)
    diagonal, scale = entries.diagonal(), n / (n - 1)
    return (rows + diagonal) * scale - diagonal * scale**2


def _are_two(value, kind: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(isinstance(one, kind) for one in value)
    )
