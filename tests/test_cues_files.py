"""Generated images on disk: functions of seed and number, written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from fastcka.cli import main
from fastcka.data import Cues, Trigger, write_images
from fastcka.data.cues.fields import TEXTURES
from fastcka.data.cues.shapes import SHAPES


def read(folder):
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path))
        for path in sorted(folder.glob("*/*"))
    }


def test_images_follow_from_seed_and_number(tmp_path):
    few = read(write_images(tmp_path / "few", 6, size=40, seed=1))
    many = read(write_images(tmp_path / "many", 9, size=40, seed=1))
    assert len(few) == 6
    assert len(many) == 9
    assert all(np.array_equal(few[name], many[name]) for name in few)
    other = read(write_images(tmp_path / "other", 6, size=40, seed=2))
    contents = [image.tobytes() for image in [*many.values(), *other.values()]]
    assert len(set(contents)) == 15


def test_folders_are_the_classes_of_the_label(tmp_path):
    images = read(write_images(tmp_path / "shapes", 40, size=16))
    assert {name.split("/")[0] for name in images} == set(SHAPES)
    assert all(image.shape == (16, 16, 3) for image in images.values())
    write_images(tmp_path / "textures", 40, size=16, label="texture")
    assert {path.parent.name for path in tmp_path.glob("textures/*/*")} == set(TEXTURES)
    folders = datasets.ImageFolder(tmp_path / "textures")
    assert len(folders) == 40
    expected = Cues(40, size=16, label="texture")
    assert all(
        folders.classes[target] == expected.classes[expected[int(Path(path).stem)][1]]
        for path, target in folders.samples
    )


def test_an_interrupted_call_is_taken_up_and_nothing_written_twice(tmp_path):
    write_images(tmp_path, 4, size=32)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    gone = min(first)
    gone.unlink()
    expected = read(write_images(tmp_path / "again", 6, size=32))
    (tmp_path / "again").rename(tmp_path.parent / "aside")
    write_images(tmp_path, 6, size=32)
    assert all(path.stat().st_mtime_ns == first[path] for path in first if path != gone)
    assert read(tmp_path).keys() == expected.keys()
    assert all(np.array_equal(read(tmp_path)[name], expected[name]) for name in expected)


def test_a_write_that_fails_leaves_no_image(tmp_path, monkeypatch):
    def half(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        write_images(tmp_path, 1, size=32)
    assert not list(tmp_path.glob("**/*.png"))


def test_other_images_in_the_folder_are_refused(tmp_path):
    write_images(tmp_path, 2, size=32)
    for options in ({"size": 48}, {"size": 32, "seed": 1}, {"size": 32, "trigger": Trigger()}):
        with pytest.raises(
            ValueError, match=r"holds other images, such as '00000.*: give an empty"
        ):
            write_images(tmp_path, 2, **options)
    with pytest.raises(ValueError, match="holds other images"):
        write_images(tmp_path, 1, size=32)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("count", 0, 1), ("size", 8, 16), ("seed", -1, 0), ("size", 32.5, 16)],
)
def test_numbers_out_of_range_are_refused(tmp_path, name, value, least):
    with pytest.raises(
        ValueError, match=f"`{name}` must be a whole number from {least} on, but is {value}"
    ):
        write_images(**{"folder": tmp_path, "count": 2, name: value})


def test_a_share_of_no_mixture_is_refused(tmp_path, capsys):
    assert main(["data", "cues", "--export", str(tmp_path / "x"), "--mixture", "0.9"]) == 1
    assert "--mixture does nothing without --label-rule mixture" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
