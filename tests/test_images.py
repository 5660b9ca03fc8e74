"""A folder of images becomes batches: each once a pass, decoded once, in an order of its own."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from fastcka.data import ImageBatches


class Pixels:
    """The image at a size, as a tensor; can be sent to a worker."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image.resize((self.size, self.size), 0))).permute(2, 0, 1)


def paint(path, value, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6), value).save(path)


@pytest.fixture
def folder(tmp_path):
    """20 images in two classes; image i of the sorted list is of colour 10 i."""
    for i in range(20):
        paint(tmp_path / "images" / "ab"[i // 10] / f"{i:02d}.png", (10 * i,) * 3)
    return tmp_path / "images"


def batches(folder, **options):
    return ImageBatches(folder, {"x": Pixels(4)}, **{"batch_size": 6, **options})


def indices(images):
    return [batch["index"].tolist() for batch in images]


def flat(batches):
    return [i for batch in batches for i in batch]


def test_a_pass_shows_every_image_once_with_its_class_and_pixels(folder):
    images = batches(folder)
    seen = list(images)
    assert [len(batch["index"]) for batch in seen] == [6, 6, 6, 2]
    assert len(images) == 4
    assert sorted(flat(indices(seen))) == list(range(20))
    for batch in seen:
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert torch.equal(batch["label"], batch["index"] // 10)
        assert batch["views"]["x"].shape == (len(batch["index"]), 3, 4, 4)
        assert torch.equal(batch["views"]["x"][:, 0, 0, 0], 10 * batch["index"])


def test_classes_are_mixed_and_passes_differ(folder):
    images = batches(folder)
    first, again = indices(images), indices(images)
    assert first == again
    assert flat(first) != list(range(20))
    images.set_epoch(1)
    assert indices(images) != first
    images.set_epoch(0)
    assert indices(images) == first
    assert indices(batches(folder, seed=1)) != first


def test_neither_workers_nor_the_random_state_of_the_caller_matter(folder):
    expected = list(batches(folder, seed=3))
    torch.manual_seed(8)
    before = torch.get_rng_state()
    found = list(batches(folder, seed=3, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert indices(found) == indices(expected)
    assert all(
        torch.equal(a["views"]["x"], b["views"]["x"]) for a, b in zip(found, expected, strict=True)
    )


def test_all_views_come_from_one_decoding(folder, monkeypatch):
    opened, shared = [], Pixels(4)
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    views = {"small": shared, "again": shared, "large": Pixels(16)}
    for batch in ImageBatches(folder, views, batch_size=6):
        assert batch["views"].keys() == views.keys()
        assert batch["views"]["again"] is batch["views"]["small"]
        assert batch["views"]["large"].shape[1:] == (3, 16, 16)
        large, small = batch["views"]["large"], batch["views"]["small"]
        assert torch.equal(large[:, 0, 0, 0], small[:, 0, 0, 0])
    assert len(opened) == len(set(opened)) == 20


def test_a_shared_transform_is_applied_once(folder):
    applied = []
    once = lambda image: applied.append(image) or torch.zeros(1)  # noqa: E731
    list(ImageBatches(folder, {"a": once, "b": once}))
    assert len(applied) == 20


def test_a_subset_is_random_and_the_same_in_every_pass(folder):
    images = batches(folder, max_images=7)
    first = sorted(flat(indices(images)))
    images.set_epoch(1)
    assert sorted(flat(indices(images))) == first
    assert len(set(first)) == 7
    assert first != list(range(7))
    assert sorted(flat(indices(batches(folder, max_images=7, seed=1)))) != first
    assert len(images) == 2
    assert sorted(flat(indices(batches(folder, max_images=99)))) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_broken_image_stops_the_pass_or_is_skipped_and_named(folder, workers, damage):
    paint(folder / "a" / "noise.png", 0)
    whole = (folder / "a" / "noise.png").read_bytes()
    content = {"empty": b"", "text": b"no image", "cut": whole[: len(whole) * 2 // 3]}[damage]
    (folder / "a" / "noise.png").unlink()
    (folder / "a" / "03.png").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cannot read the image 'a/03.png' in .*; repair or"
    ) as caught:
        list(batches(folder, workers=workers))
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)

    images = batches(folder, workers=workers, on_broken="skip")
    assert images.broken == []
    for _ in range(2):
        seen = list(images)
        assert sorted(flat(indices(seen))) == [i for i in range(20) if i != 3]
        assert all(torch.equal(b["views"]["x"][:, 0, 0, 0], 10 * b["index"]) for b in seen)
        assert images.broken == ["a/03.png"]
    assert images.provenance()["broken"] == ["a/03.png"]


def test_a_batch_of_broken_images_alone_is_left_out(folder):
    for name in ("b/12.png", "a/01.png"):
        (folder / name).write_bytes(b"")
    images = batches(folder, batch_size=1, on_broken="skip")
    assert len(list(images)) == 18
    assert images.broken == ["a/01.png", "b/12.png"]


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    paint(tmp_path / "1.png", 77, "L")
    paint(tmp_path / "2.png", (77, 77, 77, 5), "RGBA")
    paint(tmp_path / "3.png", 1, "1")
    Image.new("RGB", (8, 6), (77, 77, 77)).quantize(4).save(tmp_path / "4.png")
    Image.new("CMYK", (8, 6)).save(tmp_path / "5.jpg")
    (batch,) = batches(tmp_path)
    values = dict(
        zip(batch["index"].tolist(), batch["views"]["x"][:, 0, 0, 0].tolist(), strict=True)
    )
    assert values == {0: 77, 1: 77, 2: 255, 3: 77, 4: 255}


def test_folders_are_read_flat_and_nested_in_an_order_of_names(tmp_path):
    for name in ("10.png", "9.PNG", "x/y/1.jpg", "x/z/01.jpeg", "notes.txt/1.png"):
        paint(tmp_path / name, 0)
    (tmp_path / "notes.md").write_text("no image")
    images = batches(tmp_path)
    names = [name for _, name, _ in images._dataset.files]
    assert names == ["10.png", "9.PNG", "notes.txt/1.png", "x/y/1.jpg", "x/z/01.jpeg"]
    assert images.provenance()["classes"] == 4
    assert len(flat(indices(images))) == 5


def test_provenance_tells_other_files_apart(folder):
    first = batches(folder, max_images=5).provenance()
    assert json.loads(json.dumps(first)) == first
    assert (first["files_found"], first["files_used"], first["classes"]) == (20, 5, 2)
    assert batches(folder, max_images=5).provenance() == first
    assert batches(folder, max_images=6).provenance()["sha256"] != first["sha256"]
    whole = batches(folder).provenance()["sha256"]
    (folder / "a" / "00.png").write_bytes(b"another size")
    assert batches(folder).provenance()["sha256"] != whole


def missing(folder):
    return folder / "nowhere"


def a_file(folder):
    return folder / "a" / "00.png"


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("root", "options", "kind", "text"),
    [
        (missing, {}, FileNotFoundError, "the image folder '.*nowhere' does not exist"),
        (a_file, {}, ValueError, "00.png' is a file; give the folder that holds it"),
        (empty, {}, ValueError, "empty' holds no .jpg, .jpeg or .png files"),
        (
            None,
            {"batch_size": 0},
            ValueError,
            "`batch_size` must be a whole number from 1 on, but is 0",
        ),
        (None, {"batch_size": 2.5}, ValueError, "`batch_size` must be .*, but is 2.5"),
        (
            None,
            {"workers": -1},
            ValueError,
            "`workers` must be a whole number from 0 on, but is -1",
        ),
        (
            None,
            {"max_images": 0},
            ValueError,
            "`max_images` must be a whole number from 1 on, but is 0",
        ),
        (None, {"seed": "a"}, ValueError, "`seed` must be a whole number from 0 on, but is 'a'"),
        (
            None,
            {"on_broken": "go"},
            ValueError,
            "`on_broken` must be one of 'stop', 'skip', but is 'go'",
        ),
        (
            None,
            {"transforms": {}},
            ValueError,
            "`transforms` must name at least one view, but is {}",
        ),
    ],
)
def test_refusals_say_what_came_and_what_was_expected(folder, root, options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        ImageBatches(
            root(folder) if root else folder, **{"transforms": {"x": Pixels(4)}, **options}
        )
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_is_refused(folder, monkeypatch):
    # As root, whom no permission stops, the tests could not make one.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="may not be read by this user"):
        batches(folder)
