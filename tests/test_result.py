import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from fastcka import CKAResult, CKAResults, MinibatchCKA, array_file


def some_result(rows=2, columns=3, **changes):
    """Numbers that differ everywhere, with a NaN and digits that no short decimal has."""
    cka = np.random.rand(rows, columns)
    cka[0, 1] = np.nan
    fields = {
        "cka": cka,
        "stderr": np.random.rand(rows, columns) / 7,
        "hsic_ab": np.random.rand(rows, columns) * 1e-300,
        "hsic_aa": np.random.rand(rows),
        "hsic_bb": np.random.rand(columns),
        "layers_a": tuple(f"блок.{i}" for i in range(rows)),
        "layers_b": tuple(f"层/{i} 'q'" for i in range(columns)),
        "n_examples": 5000,
        "n_batches": 20,
        "warnings": ("`层/1` is constant", "two"),
        "meta": {"estimator": "unbiased", "bandwidth": None, "conditioning_a": [1.5, float("inf")]},
    }
    return CKAResult(**fields | changes)


def several():
    pairs = [("vit", "vit"), ("vit", "net"), ("net", "net")]
    sizes = {"vit": 2, "net": 3}
    layers = {model: tuple(f"{model}.{i}" for i in range(n)) for model, n in sizes.items()}
    return CKAResults(
        {
            (a, b): some_result(sizes[a], sizes[b], layers_a=layers[a], layers_b=layers[b])
            for a, b in pairs
        }
    )


def assert_same(result, other):
    for field in dataclasses.fields(CKAResult):
        one, two = getattr(result, field.name), getattr(other, field.name)
        assert type(one) is type(two), field.name
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype == np.float64
            assert one.shape == two.shape
            assert one.tobytes() == two.tobytes(), field.name  # NaN and the last bit included
        else:
            assert one == two, field.name


def test_a_result_comes_back_with_every_bit(tmp_path):
    result = some_result()
    path = result.save(tmp_path / "result.safetensors")
    assert path == tmp_path / "result.safetensors"
    assert_same(CKAResult.load(str(path)), result)


def test_a_measured_result_comes_back_and_still_has_intervals(tmp_path):
    cka = MinibatchCKA(["x", "y"])
    for _ in range(3):
        x = torch.randn(16, 4)
        cka.update([x, x.relu()])
    result = cka.compute()
    loaded = CKAResult.load(result.save(tmp_path / "r"))
    assert_same(loaded, result)
    assert (loaded.ci()[0] == result.ci()[0]).all()


def test_a_transposed_result_is_that_of_the_models_in_the_other_order():
    x, y = torch.randn(3, 4, 12, 5).unbind(1)[:2], torch.randn(3, 4, 12, 5).unbind(1)[2:]
    options = {"also": ["rsa_cosine", "effective_rank"]}
    pair = [("conv", "norm")]
    one = MinibatchCKA(["conv", "relu"], ["norm", "mlp"], influence=pair, **options)
    other = MinibatchCKA(["norm", "mlp"], ["conv", "relu"], influence=[pair[0][::-1]], **options)
    for batch in range(3):
        first, second = [a[batch] for a in x], [b[batch] for b in y]
        one.update(first, second)
        other.update(second, first)
    turned, expected = one.compute().transposed(), other.compute()
    for name in ("cka", "stderr", "hsic_ab", "hsic_aa", "hsic_bb"):
        np.testing.assert_allclose(getattr(turned, name), getattr(expected, name), rtol=1e-12)
    assert (turned.layers_a, turned.layers_b) == (expected.layers_a, expected.layers_b)
    assert turned.meta.keys() == expected.meta.keys()
    assert turned.meta["conditioning_a"] == expected.meta["conditioning_a"]
    assert turned.also.keys() == expected.also.keys()
    for name, values in expected.also.items():
        np.testing.assert_allclose(turned.also[name], values, rtol=1e-12)
    np.testing.assert_allclose(
        turned.influence["norm", "conv"], expected.influence["norm", "conv"], rtol=1e-9
    )


def test_results_of_several_models_come_back_in_order(tmp_path):
    results = several()
    loaded = CKAResults.load(results.save(tmp_path / "r"))
    assert list(loaded) == list(results)
    for pair in results:
        assert_same(loaded[pair], results[pair])


def test_arrays_that_are_views_are_saved_as_they_read(tmp_path):
    result = some_result()
    turned = dataclasses.replace(result, cka=np.asfortranarray(result.cka), stderr=result.cka[::-1])
    loaded = CKAResult.load(turned.save(tmp_path / "r"))
    np.testing.assert_array_equal(loaded.cka, result.cka)
    np.testing.assert_array_equal(loaded.stderr, result.cka[::-1])


def test_equal_results_are_equal_files(tmp_path):
    results = several()
    files = [results.save(tmp_path / name).read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_meta_keeps_what_json_can_hold(tmp_path):
    meta = {
        "size": (3, 224),
        "seed": np.int64(7),
        "flag": np.bool_(True),
        "eps": np.float32(0.5),
        "dtypes": {"model": torch.float16, "result": np.dtype("float64")},
    }
    loaded = CKAResult.load(some_result(meta=meta).save(tmp_path / "r"))
    assert loaded.meta == {
        "size": [3, 224],
        "seed": 7,
        "flag": True,
        "eps": 0.5,
        "dtypes": {"model": "torch.float16", "result": "float64"},
    }


@pytest.mark.parametrize(
    ("meta", "name"),
    [
        ({"deep": {"er": [1, {2}]}}, r"`meta.deep.er\[1\]`.*but is set"),
        ({"names": {3: "x"}}, "`meta.names`.*but is dict"),
        ({"x": np.zeros(2)}, "`meta.x`.*but is ndarray"),
        ({"when": np.datetime64("2020-01-01")}, "`meta.when`.*but is date"),
        ({"tensor": torch.zeros(1)}, "`meta.tensor`.*but is Tensor"),
    ],
)
def test_meta_that_json_cannot_hold_is_refused_by_name(tmp_path, meta, name):
    with pytest.raises(TypeError, match=name):
        some_result(meta=meta).save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_older_file(tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError("the disk is full")

    older = some_result()
    path = older.save(tmp_path / "r")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk is full"):
        some_result().save(path)
    assert_same(CKAResult.load(path), older)
    assert list(tmp_path.iterdir()) == [path]


def test_every_kind_of_damage_is_told(tmp_path):
    path = some_result().save(tmp_path / "r")
    whole = path.read_bytes()
    damaged = [b"", b"PK\x03\x04 something else", whole[:-9], whole[: len(whole) // 2]]
    for position in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[position] ^= 1
        damaged.append(bytes(changed))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{path} (is damaged|holds|was written)"):
            CKAResult.load(path)


def test_other_safetensors_files_are_no_results(tmp_path):
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}, {"fastcka": "[]"}):
        save_file({"w": np.zeros(3)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"weights.safetensors is damaged, or no file of"):
            CKAResult.load(path)


def test_missing_files_and_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
        CKAResult.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        some_result().save(tmp_path / "no" / "folder")


def test_one_result_and_several_are_not_mixed_up(tmp_path):
    one, many = some_result().save(tmp_path / "one"), several().save(tmp_path / "many")
    with pytest.raises(
        ValueError, match=r"many holds CKAResults, not CKAResult: use CKAResults.lo"
    ):
        CKAResult.load(many)
    with pytest.raises(
        ValueError, match=r"one holds CKAResult, not CKAResults: use CKAResult.load"
    ):
        CKAResults.load(one)


def test_a_newer_format_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "SCHEMA", 2)
    path = some_result().save(tmp_path / "r")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"newer fastcka, in format 2, .* up to 1: update fastcka"):
        CKAResult.load(path)


def test_the_file_is_readable_without_fastcka(tmp_path):
    result = some_result()
    with safe_open(result.save(tmp_path / "r"), "numpy") as file:
        header = json.loads(file.metadata()["fastcka"])
        np.testing.assert_array_equal(file.get_tensor("0.cka"), result.cka)
    assert header["schema"] == 1
    assert header["results"][0]["layers_b"] == list(result.layers_b)


def test_the_long_table_has_each_number_beside_its_names():
    result = some_result(2, 3)
    table = result.to_pandas()
    assert list(table.columns) == ["layer_a", "layer_b", "cka", "stderr"]
    assert list(table.index) == list(range(6))
    for row in table.itertuples():
        i, j = result.layers_a.index(row.layer_a), result.layers_b.index(row.layer_b)
        assert row.Index == 3 * i + j
        np.testing.assert_equal(row.cka, result.cka[i, j])
        assert row.stderr == result.stderr[i, j]
    assert table.attrs == result.meta


def test_the_dataset_has_each_number_at_its_names():
    result = some_result(2, 3)
    dataset = result.to_xarray()
    for i, a in enumerate(result.layers_a):
        for j, b in enumerate(result.layers_b):
            at = dataset.sel(layer_a=a, layer_b=b)
            for name in ("cka", "stderr", "hsic_ab"):
                np.testing.assert_equal(float(at[name]), getattr(result, name)[i, j])
            assert (at.hsic_aa, at.hsic_bb) == (result.hsic_aa[i], result.hsic_bb[j])
    assert dataset.attrs == {"estimator": "unbiased", "n_examples": 5000, "n_batches": 20}


def test_the_dataset_of_one_model_has_two_axes():
    names = ("x", "y")
    dataset = some_result(2, 2, layers_a=names, layers_b=names).to_xarray()
    assert dataset.cka.dims == ("layer_a", "layer_b")


@pytest.mark.parametrize(("method", "name"), [("to_pandas", "pandas"), ("to_xarray", "xarray")])
def test_a_missing_library_is_told_with_its_command(monkeypatch, method, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        getattr(some_result(), method)()
