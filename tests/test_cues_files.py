"""Generated images on disk: functions of seed and number, written whole or not at all."""

import csv
import json
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixture", "0.9"], "--mixture does nothing without --label-rule mixture"),
        (["--trigger-share", "0.9"], "--trigger-place and --trigger-share do nothing without"),
        (["--label-rule", "trigger"], "--label-rule names the trigger, and there is none: say of "),
        (["--shuffled", "trigger"], "--shuffled names the trigger, and there is none: say of what"),
        (["--correlation", "trigger", "1"], "there is none: say of what kind by --trigger"),
        (["--correlation", "texture", "x"], "--correlation texture must be a number from 0 to 1"),
        (["--correlation", "texture", "3"], "--correlation texture must be a number from 0 to 1"),
        (["--correlation", "shape", "1"], "--correlation names 'shape', which is the label"),
        (["--trigger", "letter", "--trigger-share", "7"], "--trigger-share must be a number from"),
        (["--count", "0"], "--count must be a whole number from 1 on, but is 0"),
        (["--size", "8"], "--size must be a whole number from 16 on, but is 8"),
        (["--objects", "9"], "--objects must be at most 4, but is 9"),
        (["--label-rule", "mixture", "--mixture", "2"], "--mixture must be a number from 0 to 1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_their_names(tmp_path, capsys, arguments, message):
    assert main(["data", "cues", "--export", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_places_that_cannot_be_written_are_refused_by_their_options(tmp_path, capsys):
    assert main(["data", "cues"]) == 2
    assert "say where to: --export FOLDER, --sheet FILE.png, or both" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    for option, place, reason in [
        ("--sheet", tmp_path / "none" / "sheet.png", "No such file or directory"),
        ("--sheet", tmp_path, "unknown file extension"),
        ("--export", file, "File exists"),
    ]:
        assert main(["data", "cues", "--count", "2", option, str(place)]) == 2
        error = capsys.readouterr().err
        assert f"{option} must be a " in error
        assert f"that can be written, but is {str(place)!r}: {reason}" in error
        assert error.count("\n") == 1


def test_the_description_names_the_classes(tmp_path):
    write_images(tmp_path, 4, size=32, label="texture")
    description = json.loads((tmp_path / "cues.json").read_text())
    assert description["classes"]["label"] == description["classes"]["texture"] == list(TEXTURES)
    assert description["classes"]["shape"] == list(SHAPES)
    with open(tmp_path / "factors.csv", newline="") as file:
        for row in csv.DictReader(file):
            names = description["classes"]
            assert row["file"].split("/")[0] == names["texture"][int(row["texture"])]
            assert all(0 <= int(row[cue]) < len(names[cue]) for cue in names)


def test_an_export_without_names_of_classes_is_taken_up(tmp_path):
    """As they were written before."""
    write_images(tmp_path, 2, size=32)
    file = tmp_path / "cues.json"
    with_names = file.read_text()
    described = json.loads(with_names)
    del described["classes"]
    file.write_text(json.dumps(described))
    write_images(tmp_path, 3, size=32)
    assert file.read_text() == with_names
    file.write_text("[]")
    with pytest.raises(ValueError, match="holds other images"):
        write_images(tmp_path, 3, size=32)
