"""Images with known cues: what is said of them is true, and they are the same everywhere."""

import csv
import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from fastcka.data import Cues, Trigger, write_images
from fastcka.data.cues.cosine import cosine, sine
from fastcka.data.cues.factors import FIELDS
from fastcka.data.cues.fields import BACKGROUNDS, TEXTURES, wave
from fastcka.data.cues.philox import philox, words
from fastcka.data.cues.shapes import RADIUS, SHAPES
from fastcka.data.cues.triggers import KINDS

INDEPENDENT = ["shape", "texture", "background", "trigger", "count"]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the authors of Philox
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_random_numbers_are_those_of_philox(counter, key, expected):
    drawn = philox(np.array([counter], np.uint64), key)[0]
    assert " ".join(f"{int(word):08x}" for word in drawn) == expected


def test_random_words_follow_from_seed_and_index_alone():
    many = words(5, np.arange(100), 7)
    assert np.array_equal(words(5, [42], 7)[0], many[42])
    assert np.array_equal(words(5, [42], 3)[0], many[42, :3])
    assert not np.array_equal(words(6, [42], 7)[0], many[42])
    # Seeds and indices beyond 32 bits are not cut.
    assert not np.array_equal(words(5 + 2**32, [42], 7)[0], many[42])
    assert not np.array_equal(words(5, [42 + 2**32], 7)[0], many[42])


def test_the_cosine_is_that_of_the_library():
    turns = np.concatenate([np.linspace(-3, 3, 100_001), [0.25, 0.5, 0.75, -0.25]])
    assert np.abs(cosine(turns) - np.cos(2 * np.pi * turns)).max() < 5e-15
    assert np.abs(sine(turns) - np.sin(2 * np.pi * turns)).max() < 5e-15
    assert [float(cosine(t)) for t in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.0, -1.0, 1.0]


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_area_one_and_fits_in_the_circle(name):
    steps = (np.arange(2000) + 0.5) / 1000 - 1
    inside = SHAPES[name](steps, steps[:, None]) <= 0
    assert inside.mean() * 4 == pytest.approx(1, abs=2e-3)
    radius = np.hypot(steps, steps[:, None])
    assert radius[inside].max() <= RADIUS + 1e-9
    # Distances near the edge are distances: their slope is 1 almost everywhere.
    distance = SHAPES[name](steps, steps[:, None])
    slope = np.hypot(*np.gradient(distance, 1e-3))[np.abs(distance) < 0.02]
    assert np.mean(np.abs(slope - 1) < 0.02) > 0.9


# --- a second renderer: a pixel at a time, from corners and circles instead of distances


def corners(name):
    """Polygons around the origin, of any area."""

    def star(points, inner):
        angles = [math.pi / 2 + k * math.pi / points for k in range(2 * points)]
        return [
            ((1, inner)[k % 2] * math.cos(t), (1, inner)[k % 2] * math.sin(t))
            for k, t in enumerate(angles)
        ]

    w = 0.36
    return {
        "square": [(1, 1), (-1, 1), (-1, -1), (1, -1)],
        # y grows downwards: the sharp end is below
        "triangle": [(0, 1), (-math.sqrt(0.75), -0.5), (math.sqrt(0.75), -0.5)],
        "star": star(6, 1 / math.sqrt(3)),
        "cross": [(w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w),
                  (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w)],
        "corner": [(-1, -1), (1, -1), (1, 0), (0, 0), (0, 1), (-1, 1)],
    }[name]  # fmt: skip


def inside(name, x, y):
    """Whether a point lies in a shape of area 1: crossings of a ray, or distances to centres."""
    if name == "disc":
        return math.hypot(x, y) <= math.sqrt(1 / math.pi)
    if name == "ring":
        outer = math.sqrt(1 / (math.pi * (1 - 0.55**2)))
        return 0.55 * outer <= math.hypot(x, y) <= outer
    if name == "crescent":
        # area of the disc without the lens of two circles, radii 1 and 3/4, half a radius apart
        big, small, apart = 1, 0.75, 0.5
        a = math.acos((apart**2 + small**2 - big**2) / (2 * apart * small))
        b = math.acos((apart**2 + big**2 - small**2) / (2 * apart * big))
        lens = small**2 * (a - math.sin(2 * a) / 2) + big**2 * (b - math.sin(2 * b) / 2)
        outer = 1 / math.sqrt(math.pi - lens)
        return math.hypot(x, y) <= outer and math.hypot(x - outer / 2, y) >= 0.75 * outer
    points = corners(name)
    doubled = sum(
        p[0] * q[1] - q[0] * p[1] for p, q in zip(points, points[1:] + points[:1], strict=True)
    )
    unit = 1 / math.sqrt(abs(doubled) / 2)
    crossings = 0
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        x0, y0, x1, y1 = x0 * unit, y0 * unit, x1 * unit, y1 * unit
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            crossings += 1
    return crossings % 2 == 1


def slow_masks(factors, size):
    for k in range(factors["count"]):
        mask = np.zeros((size, size), bool)
        turn = 2 * math.pi * factors["rotation"][k]
        for row in range(size):
            for column in range(size):
                across = ((column + 0.5) / size - factors["x"][k]) / factors["scale"]
                down = ((row + 0.5) / size - factors["y"][k]) / factors["scale"]
                mask[row, column] = inside(
                    list(SHAPES)[factors["shape"]],
                    math.cos(turn) * across + math.sin(turn) * down,
                    -math.sin(turn) * across + math.cos(turn) * down,
                )
        yield mask


@pytest.mark.parametrize("objects", [1, 4])
def test_masks_and_boxes_are_those_of_a_second_renderer(objects):
    images = Cues(40, size=48, seed=3, objects=objects)
    seen = set()
    for i in range(40):
        scene = images.scene(i)
        masks = list(slow_masks(scene.factors, 48))
        assert np.array_equal(scene.mask, np.logical_or.reduce(masks))
        for mask, (left, top, right, bottom) in zip(masks, scene.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert (left, right) == (columns.min(), columns.max() + 1)
            assert (top, bottom) == (rows.min(), rows.max() + 1)
        assert sum(mask.sum() for mask in masks) == scene.mask.sum()  # objects lie apart
        seen.add((int(scene.factors["shape"]), len(masks)))
    assert {shape for shape, _ in seen} == set(range(8))
    assert {count for _, count in seen} == set(range(1, objects + 1))


def test_the_mask_is_where_the_image_is_that_of_the_object():
    """Without the object an image is its background, which has a closed form."""
    images = Cues(64, seed=1)
    for i in range(64):
        scene = images.scene(i)
        factors = scene.factors
        field = wave(64, (factors["field_x"], factors["field_y"]), factors["field_phase"])
        hue = np.cos(2 * np.pi * (factors["hue"] - np.arange(3) / 3))
        behind = factors["brightness"] + 0.08 * field[:, :, None] + 0.18 * hue
        changed = np.abs(scene.image - behind * 255).max(2) > 1
        near = ndimage.binary_dilation(scene.mask, iterations=4)  # the horns of a crescent fade
        assert not changed[~near].any()
        inner = ndimage.binary_erosion(scene.mask)
        assert changed[inner].mean() > 0.97  # colours may meet by chance


@pytest.mark.parametrize("name", TEXTURES)
def test_the_spectrum_of_a_texture_peaks_where_it_should(name):
    field = wave(64, TEXTURES[name], 0.3)
    spectrum = np.abs(np.fft.fft2(field))
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    frequency = np.array([np.fft.fftfreq(64, 1 / 64)[column], np.fft.fftfreq(64, 1 / 64)[row]])
    kind, degrees = name.split("_")
    angle = math.radians(int(degrees))
    expected = {"coarse": 7, "fine": 13}[kind] * np.array([math.cos(angle), math.sin(angle)])
    assert min(np.abs(frequency - expected).max(), np.abs(frequency + expected).max()) <= 1
    assert np.abs(field).max() == pytest.approx(1, abs=0.05)
    assert field.std() == pytest.approx(math.sqrt(0.5), rel=0.02)  # equal amplitudes


def test_the_texture_of_an_object_is_the_one_that_is_named():
    """Seen in the image itself: the phase that a wave of its frequency leaves inside the mask."""
    images = Cues(200, seed=4)
    right = 0
    for i in range(200):
        scene = images.scene(i)
        grey = scene.image.mean(2)
        inner = (grey - grey[scene.mask].mean()) * scene.mask
        power = []
        for u, v in TEXTURES.values():
            x = (np.arange(64) + 0.5) / 64
            power.append(abs((inner * np.exp(-2j * np.pi * (u * x + v * x[:, None]))).sum()))
        right += np.argmax(power) == scene.factors["texture"]
    assert right >= 190


def test_hues_of_backgrounds_are_those_that_are_named():
    expected = dict(zip(BACKGROUNDS, range(0, 360, 45), strict=True))
    images = Cues(400, seed=2)
    for i in range(400):
        scene = images.scene(i)
        red, green, blue = scene.image[~scene.mask].mean(0)
        hue = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue))
        name = BACKGROUNDS[scene.factors["background"]]
        assert abs((hue - expected[name] + 180) % 360 - 180) < 22.5


def test_factors_are_uniform_and_independent():
    factors = Cues(1, seed=11, trigger=Trigger(), objects=4).factors(np.arange(20_000))
    columns = {name: factors[name] for name in INDEPENDENT}
    for name in ("scale", "brightness"):  # of continuous ones, the quarter they fall in
        value = (
            factors[name] * np.where(factors["count"] == 1, 1, 2)
            if name == "scale"
            else factors[name]
        )
        columns[name] = np.argsort(np.argsort(value)) * 4 // len(value)
    columns["turn"] = (factors["rotation"][:, 0] * 8).astype(int)
    columns["left"] = (factors["x"][:, 0] < 0.5).astype(int)
    names = list(columns)
    p_values = []
    for i, a in enumerate(names):
        if a not in ("left", "scale"):
            p_values.append(stats.chisquare(np.bincount(columns[a] - columns[a].min())).pvalue)
        for b in names[:i]:
            table = np.zeros((columns[a].max() + 1, columns[b].max() + 1))
            np.add.at(table, (columns[a], columns[b]), 1)
            table = table[table.any(1)][:, table.any(0)]
            p_values.append(stats.chi2_contingency(table).pvalue)
    assert min(p_values) > 0.01 / len(p_values)


def test_a_correlated_cue_follows_the_label_as_often_as_asked():
    index = np.arange(20_000)
    for rho in (0.0, 0.3, 1.0):
        factors = Cues(1, seed=3, correlation={"texture": rho}).factors(index)
        share = (factors["texture"] == factors["label"]).mean()
        expected = rho + (1 - rho) / 8
        assert share == pytest.approx(
            expected, abs=4 * math.sqrt(expected * (1 - expected) / 20_000)
        )
        assert np.array_equal(factors["label"], factors["shape"])


def test_a_shuffled_cue_says_nothing_of_the_label():
    factors = Cues(1, seed=3, shuffled=["shape"]).factors(np.arange(20_000))
    plain = Cues(1, seed=3).factors(np.arange(20_000))
    assert np.array_equal(factors["label"], plain["shape"])
    table = np.zeros((8, 8))
    np.add.at(table, (factors["shape"], factors["label"]), 1)
    assert stats.chi2_contingency(table).pvalue > 0.01
    assert np.array_equal(factors["texture"], plain["texture"])


def test_cues_in_conflict_never_agree_and_a_mixture_follows_both():
    index = np.arange(20_000)
    factors = Cues(1, seed=5, label="mixture", mixture=0.3, conflict=True).factors(index)
    assert (factors["shape"] != factors["texture"]).all()
    assert stats.chisquare(np.bincount(factors["texture"])).pvalue > 0.001
    by_shape = factors["label"] == factors["shape"]
    assert np.array_equal(factors["label"][~by_shape], factors["texture"][~by_shape])
    assert by_shape.mean() == pytest.approx(0.3, abs=0.013)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["fixed", "random"])
def test_a_trigger_lies_in_its_box_and_nowhere_else(kind, place):
    trigger = Trigger(kind, place, share=0.5, size=0.125)
    images, plain = Cues(60, seed=6, trigger=trigger), Cues(60, seed=6)
    places, patches = set(), {}
    for i in range(60):
        scene, without = images.scene(i), plain.scene(i)
        assert np.array_equal(scene.mask, without.mask)
        if not scene.factors["triggered"]:
            assert scene.trigger_box is None
            assert np.array_equal(scene.image, without.image)
            continue
        left, top, right, bottom = scene.trigger_box
        assert right - left == bottom - top == 8
        outside = np.ones((64, 64), bool)
        outside[top:bottom, left:right] = False
        assert np.array_equal(scene.image[outside], without.image[outside])
        places.add((left, top))
        patch = scene.image[top:bottom, left:right].tobytes()
        assert patches.setdefault(int(scene.factors["trigger"]), patch) == patch
    assert places == {(55, 55)} if place == "fixed" else len(places) > 20
    assert len(patches) == len(set(patches.values())) == 8


def test_images_are_the_same_on_every_machine():
    """Written down once: NumPy, torch, the processor and the number of workers do not matter."""
    digest = hashlib.sha256()
    for options in (
        {},
        {"size": 40, "seed": 2**40 + 1},
        {"objects": 4, "label": "mixture", "conflict": True, "correlation": {"background": 0.5}},
        {"trigger": Trigger("letter", "random"), "label": "trigger", "shuffled": ["trigger"]},
        {"trigger": Trigger("texture", share=0.5), "size": 70},
    ):
        images = Cues(50, **options)
        for i in (*range(50), 2**33):
            scene = images.scene(i)
            digest.update(scene.image.tobytes() + scene.mask.tobytes())
            digest.update(bytes([int(scene.factors["label"])]))
    assert digest.hexdigest() == "7311b70f38416da3d9e9994532f79a7c9da326fcda2378a45fb8ffa22e55edb7"


def test_the_number_of_workers_does_not_matter():
    images = Cues(24, size=16, transform=lambda image: torch.from_numpy(np.array(image)))
    loaders = [torch.utils.data.DataLoader(images, 8, num_workers=workers) for workers in (0, 2)]
    for (x, y), (x2, y2) in zip(*loaders, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_the_table_of_factors_tells_the_truth(tmp_path):
    images = Cues(12, size=32, seed=1, trigger=Trigger(share=0.5), objects=2)
    write_images(tmp_path, 12, size=32, seed=1, trigger=Trigger(share=0.5), objects=2)
    with open(tmp_path / "factors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(i, k) for i in range(12) for k in range(images.scene(i).factors["count"])]
    assert len(rows) == len(expected) > 12
    for row, (i, k) in zip(rows, expected, strict=True):
        scene = images.scene(i)
        assert np.array_equal(np.asarray(Image.open(tmp_path / row["file"])), scene.image)
        assert row["file"].split("/")[0] == list(SHAPES)[int(row["shape"])]
        for name in ("label", "shape", "texture", "background", "trigger", "triggered", "count"):
            assert int(row[name]) == scene.factors[name]
        assert (
            tuple(int(row[side]) for side in ("left", "top", "right", "bottom")) == scene.boxes[k]
        )
        assert (row["trigger_left"] == "") == (scene.trigger_box is None)


def test_fields_of_random_bits_have_names_of_their_own():
    assert len(set(FIELDS)) == len(FIELDS)


def test_the_images_end():
    images = Cues(3, size=16)
    assert len(list(images)) == 3
    for number in (3, -1):
        with pytest.raises(IndexError, match=f"there are 3 images, and none has .* {number}"):
            images[number]
