"""Generated images are a function of the seed and their number."""

import numpy as np
import pytest
from PIL import Image

from fastcka.data import write_images


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


def test_images_are_rgb_of_the_asked_size_with_structure(tmp_path):
    images = read(write_images(tmp_path, 8, size=64))
    assert {name.split("/")[0] for name in images} == {"disc", "square", "star", "triangle"}
    for image in images.values():
        assert image.shape == (64, 64, 3)
        pixels = image.astype(float)
        # Neighbours are alike, distant pixels are not: neither noise nor one colour.
        assert (
            np.abs(np.diff(pixels, axis=0)).mean() < 0.6 * np.abs(pixels[32:] - pixels[:32]).mean()
        )


def test_a_shape_stands_out_of_what_would_be_there_without_it(tmp_path, monkeypatch):
    from fastcka.data import generated

    shape = generated._image("disc", 64, np.random.default_rng(0))
    monkeypatch.setitem(generated.SHAPES, "disc", [0.0] * 48)
    without = generated._image("disc", 64, np.random.default_rng(0))
    changed = (np.asarray(shape) != np.asarray(without)).any(axis=2).mean()
    assert np.pi * 0.15**2 * 0.8 < changed < np.pi * 0.35**2 * 1.1


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
    for options in ({"size": 48}, {"size": 32, "seed": 1}):
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
