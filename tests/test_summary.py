"""A result in short says what the matrix says."""

import json

import numpy as np
import pytest

from fastcka import CKAResult, CKAResults
from fastcka.summary import best_matches, in_words, summary


def result(cka, names=("vit", "cnn"), stderr=None):
    cka = np.array(cka, dtype=float)
    meta = {"models": {side: {"name": n} for side, n in zip("ab", names, strict=False)}}
    return CKAResult(
        cka=cka,
        stderr=np.full_like(cka, 0.01) if stderr is None else np.array(stderr),
        hsic_ab=cka,
        hsic_aa=np.ones(cka.shape[0]),
        hsic_bb=np.ones(cka.shape[1]),
        layers_a=tuple(f"a{i}" for i in range(cka.shape[0])),
        layers_b=tuple(f"{'b' if len(names) > 1 else 'a'}{j}" for j in range(cka.shape[1])),
        n_examples=64,
        n_batches=2,
        meta=meta | {"n_blocks": 2, "seed": 3},
    )


def test_the_best_match_is_the_highest_of_the_row():
    rows = best_matches(result([[0.1, 0.7, 0.3], [0.6, -0.2, np.nan]]))
    assert [(row["layer"], row["match"], row["cka"]) for row in rows] == [
        ("a0", "b1", 0.7),
        ("a1", "b0", 0.6),
    ]


def test_a_layer_of_one_model_is_not_its_own_match():
    rows = best_matches(result([[1.0, 0.2], [0.2, 1.0]], names=("vit",)))
    assert [row["match"] for row in rows] == ["a1", "a0"]


@pytest.mark.parametrize("cka", [[[np.nan, np.nan]], [[np.nan, 0.5], [np.nan, np.nan]]])
def test_no_value_is_none_and_json_can_hold_it(cka):
    short = summary(result(cka, stderr=np.full(np.shape(cka), np.nan)))
    assert short["pairs"][0]["best_matches"][-1]["match"] is None
    json.loads(json.dumps(short, allow_nan=False))


def test_a_single_layer_with_itself_has_no_other():
    assert best_matches(result([[1.0]], names=("vit",)))[0]["match"] is None


def test_the_mean_leaves_out_what_has_no_value():
    assert summary(result([[0.2, np.nan], [0.4, np.nan]]))["pairs"][0]["mean_cka"] == np.mean(
        [0.2, 0.4]
    )


def test_many_pairs_are_listed_once_each():
    pairs = {("v", "v"): result([[1.0]], ("v",)), ("v", "c"): result([[0.5]], ("v", "c"))}
    short = summary(CKAResults(pairs))
    assert [pair["models"] for pair in short["pairs"]] == [["v"], ["v", "c"]]
    assert [model["name"] for model in short["models"]] == ["v", "c"]
    assert short["provenance"]["seed"] == 3


def test_words_name_models_images_and_errors():
    text = in_words(result([[0.1, 0.7]]))
    assert text.splitlines() == [
        "vit and cnn",
        "1 x 2 layers, 64 examples in 2 batches, CKA",
        "most alike, CKA ± standard error, rough from 2 batches:",
        "  a0  0.700 ± 0.010  b1",
    ]
    several = result([[0.1, 0.7]])
    several.meta["passes"] = 3
    assert in_words(several).splitlines()[1:3] == [
        "1 x 2 layers, 3 passes, together 64 examples in 2 batches, CKA",
        "most alike, CKA ± standard error, rough from 2 batches of one pass:",
    ]
    single = result([[np.nan, np.nan], [0.5, 0.1]], stderr=np.full((2, 2), np.nan))
    single.meta["n_blocks"] = 1
    assert in_words(single).splitlines()[2:] == [
        "most alike, CKA (one batch has no standard errors):",
        "  a0  no value",
        "  a1  0.500  b0",
    ]
    itself = in_words(result([[1.0, 0.2], [0.2, 1.0]], ("vit",)))
    assert itself.startswith("vit with itself")
    assert "most alike of the others" in itself
    both = {("v", "v"): result([[1.0]], ("v",)), ("v", "c"): result([[0.5]], ("v", "c"))}
    assert in_words(CKAResults(both)) == in_words(both["v", "c"])


def test_many_layers_are_thinned():
    lines = in_words(result(np.full((100, 2), 0.5))).splitlines()
    assert len(lines) == 3 + 20 + 1
    assert lines[-1] == "  one layer in 5; all are in the files"


def test_the_matrix_is_there_with_its_names():
    pair = summary(result([[0.12345678, np.nan]]))["pairs"][0]
    assert pair["cka"] == [[0.123457, None]]
    assert (pair["layers_a"], pair["layers_b"]) == (["a0"], ["b0", "b1"])


def test_chance_and_measures_beside_cka_are_told():
    from dataclasses import replace

    with_null = replace(
        result([[0.1, 0.7]]), null=np.tile([0.2, 0.1], (39, 1, 1)), also={"cknna": np.eye(1, 2)}
    )
    assert in_words(with_null).splitlines()[-1] == "  p <= 0.05 in 1 of 2 pairs of layers"
    few = replace(with_null, null=with_null.null[:10])
    assert in_words(few).splitlines()[-1] == (
        "  p is 1/11 at best: 10 random orders are too few to tell"
    )
    pair = summary(with_null)["pairs"][0]
    assert pair["p_values"] == [[1.0, 0.025]]
    assert pair["also"] == {"cknna": [[1.0, 0.0]]}


def test_the_images_that_change_cka_most_are_told_either_way():
    from dataclasses import replace

    changes = np.array([0.1, np.nan, -0.5, 0.02, 0.3, -0.001, 0.04])
    names = tuple("pqrstuv")
    told = replace(result([[0.1, 0.7]]), influence={("a0", "b1"): changes}, images=names)
    assert in_words(told).splitlines()[-6:] == [
        "what single images do to the CKA of a0 and b1, the largest:",
        "  -5.00e-01  r",
        "  +3.00e-01  t",
        "  +1.00e-01  p",
        "  +4.00e-02  v",
        "  +2.00e-02  s",
    ]
    (pair,) = summary(told)["pairs"][0]["influence"]
    assert (pair["layer_a"], pair["layer_b"]) == ("a0", "b1")
    assert pair["images"][0] == {"image": "r", "influence": -0.5}
    unnamed = replace(told, images=None, influence={("a0", "b1"): np.full(7, np.nan)})
    assert summary(unnamed)["pairs"][0]["influence"][0]["images"] == []
    place = summary(replace(told, images=None))["pairs"][0]["influence"][0]["images"][0]["image"]
    assert place == 2
    json.dumps(summary(told), allow_nan=False)


def three():
    """Two layers of v are one of c; m has one layer, which is like nothing."""
    values = {
        ("v", "v"): [[1.0, 0.25], [0.25, 1.0]],
        ("v", "c"): [[0.9, 0.1], [0.7, 0.3]],
        ("v", "m"): [[0.1], [np.nan]],
        ("c", "c"): [[1.0, 0.5], [0.5, 1.0]],
        ("c", "m"): [[np.nan], [np.nan]],
        ("m", "m"): [[1.0]],
    }
    return CKAResults(
        {(a, b): result(cka, (a,) if a == b else (a, b)) for (a, b), cka in values.items()}
    )


def test_models_are_matched_both_ways_and_with_their_own_other_layers():
    table = three().between_models()
    assert list(table) == ["v", "c", "m"]
    assert list(table["c"]) == ["v", "c", "m"]
    assert table["v"] == {"v": 0.25, "c": pytest.approx((0.9 + 0.7) / 2), "m": 0.1}
    assert table["c"]["v"] == pytest.approx((0.9 + 0.3) / 2)
    assert table["m"]["v"] == 0.1
    assert np.isnan([table["c"]["m"], table["m"]["c"], table["m"]["m"]]).all()


def test_more_than_two_models_end_with_their_table():
    lines = in_words(three()).splitlines()
    assert lines[-5:] == [
        "best match of a layer, mean CKA over the layers of the model in front:",
        "         v      c      m",
        "  v  0.250  0.800  0.100",
        "  c  0.600  0.500    nan",
        "  m  0.100    nan    nan",
    ]
    short = summary(three())
    assert short["between_models"]["v"]["m"] == 0.1
    assert short["between_models"]["m"]["m"] is None
    json.dumps(short, allow_nan=False)
