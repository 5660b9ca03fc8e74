"""Data sets of the Hub: saved on disk, from files, and by name, without any network."""

import sys

import pytest
import torch
from picture_archives import png
from test_images import Pixels

from fastcka.data import ImageBatches, ImageSet


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        RuntimeError, match=r"data set 'me/mine' needs the package datasets: pip install datasets"
    ):
        ImageSet("hfds/me/mine")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package, without any network, and with a cache of its own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def rows(datasets, labels, names=("cat", "dog"), column="label", image="image"):
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    features = datasets.Features({image: datasets.Image(), column: kind})
    return datasets.Dataset.from_dict(
        {image: [{"bytes": png(i), "path": None} for i in range(len(labels))], column: labels},
        features=features,
    )


def values(images):
    return [image.getpixel((0, 0))[0] for image, _ in images]


def test_a_saved_data_set_is_read_as_it_is(datasets, tmp_path):
    rows(datasets, [1, 0, 1]).save_to_disk(tmp_path / "saved")
    for root in (tmp_path / "saved", f"hfds/{tmp_path}/saved"):
        images = ImageSet(root)
        assert values(images) == [0, 1, 2]
        assert images.labels == [1, 0, 1]
        assert images.classes == ["cat", "dog"]
    for workers in (0, 2):
        batches = ImageBatches(tmp_path / "saved", {"x": Pixels(4)}, workers=workers)
        (batch,) = batches
        assert torch.equal(batch["views"]["x"][:, 0, 0, 0], batch["index"])
        assert batch["label"].tolist() == [[1, 0, 1][i] for i in batch["index"]]
    facts = batches.provenance()
    assert (facts["root"], facts["files_used"]) == (f"hfds/{tmp_path}/saved", 3)


def test_of_several_splits_the_images_for_validation_are_meant(datasets, tmp_path):
    parts = {"train": [0, 0, 0], "test": [0, 1], "validation": [1]}
    whole = datasets.DatasetDict({name: rows(datasets, part) for name, part in parts.items()})
    whole.save_to_disk(tmp_path / "saved")
    assert ImageSet(tmp_path / "saved").names == ["validation/000000"]
    for name, part in parts.items():
        assert ImageSet(tmp_path / "saved", split=name).labels == part
    del whole["validation"]
    whole.save_to_disk(tmp_path / "two")
    assert ImageSet(tmp_path / "two").labels == [0, 1]
    with pytest.raises(
        ValueError,
        match=r"has the splits train, test, and 'val' was asked for: give `split`, --spl",
    ):
        ImageSet(tmp_path / "two", split="val")
    datasets.DatasetDict({"a": whole["train"], "b": whole["test"]}).save_to_disk(tmp_path / "ab")
    with pytest.raises(ValueError, match="has the splits a, b, and none was asked for"):
        ImageSet(tmp_path / "ab")


def test_columns_are_found_by_what_they_hold(datasets, tmp_path):
    rows(datasets, [1, 0], column="fine_label", image="img").save_to_disk(tmp_path / "a")
    assert ImageSet(tmp_path / "a").labels == [1, 0]
    rows(datasets, ["b", "a", "b"], names=None).save_to_disk(tmp_path / "b")
    assert (ImageSet(tmp_path / "b").labels, ImageSet(tmp_path / "b").classes) == (
        [1, 0, 1],
        ["a", "b"],
    )
    data = rows(datasets, ["b", "a"], names=None).remove_columns("label")
    data.save_to_disk(tmp_path / "c")
    assert ImageSet(tmp_path / "c").labels is None
    for labels, expected in (([2, None], [2, -1]), ([[1], [1, 2]], None), ([0.5, 1.0], None)):
        data.add_column("label", labels).save_to_disk(tmp_path / str(labels))
        assert ImageSet(tmp_path / str(labels)).labels == expected
    data.add_column("text", ["x", "y"]).remove_columns("image").save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"has no column of images, but text: give one that has"):
        ImageSet(tmp_path / "d")


def test_files_of_a_data_set_are_read(datasets, tmp_path):
    (tmp_path / "mine").mkdir()
    rows(datasets, [1, 0]).to_parquet(tmp_path / "mine" / "test-00000-of-00001.parquet")
    images = ImageSet(f"hfds/{tmp_path}/mine")
    assert images.labels == [1, 0]
    assert images.names == ["test/000000", "test/000001"]


def test_what_is_in_the_cache_is_found_by_name_without_a_network(datasets, tmp_path):
    (tmp_path / "mine").mkdir()
    rows(datasets, [1, 0]).to_parquet(tmp_path / "mine" / "test-00000-of-00001.parquet")
    ImageSet(f"hfds/{tmp_path}/mine")
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    images = ImageSet("hfds/mine")
    assert (images.labels, values(images)) == ([1, 0], [0, 1])


def test_images_that_are_files_of_their_own_are_read(datasets, tmp_path):
    (tmp_path / "mine" / "test").mkdir(parents=True)
    (tmp_path / "mine" / "test" / "1.png").write_bytes(png(7))
    assert values(ImageSet(f"hfds/{tmp_path}/mine")) == [7]


def test_what_is_not_there_or_cannot_be_loaded_is_told(datasets, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"data set '.*nowhere' does not exist: give a folder written by sav",
    ):
        ImageSet(f"hfds/{tmp_path}/nowhere")
    for name in ("me/mine", "mine"):
        with pytest.raises(
            RuntimeError, match=f"data set '{name}' cannot be loaded: .*in the cache"
        ):
            ImageSet(f"hfds/{name}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"broken' cannot be loaded: ") as caught:
        ImageSet(tmp_path / "broken")
    assert "\n" not in str(caught.value)
