"""ImageNet as it unpacks: classes as networks number them, boxes as the annotators drew them."""

import numpy as np
import pytest
import torch
from picture_archives import jpeg, voc
from scipy.io import savemat
from test_images import Pixels

from fastcka.data import ImageBatches, ImageSet
from fastcka.data.annotations import read_solution, read_voc

# By number: class, width, height, and box: left, top, right and bottom, the last two outside.
PICTURES = {
    1: ("n01751748", 60, 40, (10, 5, 30, 25)),
    2: ("n01440764", 40, 60, (0, 0, 40, 60)),
    5: ("n02012849", 50, 50, (20, 30, 50, 50)),
}
LABELS = [65, 0, 134]


def stem(number):
    return f"ILSVRC2012_val_{number:08d}"


def images(folder, by_class=False):
    for number, (wnid, width, height, box) in PICTURES.items():
        place = folder / wnid if by_class else folder
        jpeg(place / f"{stem(number)}.JPEG", width, height, box)
    return folder


def annotations(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, (wnid, width, height, (left, top, right, bottom)) in PICTURES.items():
        box = (wnid, left, top, right - 1, bottom - 1)
        (folder / f"{stem(number)}.xml").write_text(voc(stem(number), width, height, [box]))
    return folder


def solution(path):
    rows = ["ImageId,PredictionString"]
    for number, (wnid, _, _, (left, top, right, bottom)) in reversed(PICTURES.items()):
        rows.append(f"{stem(number)},{wnid} {left} {top} {right - 1} {bottom - 1} ")
    path.write_text("\n".join(rows) + "\n")
    return path


def devkit(folder):
    """With numbers of its own: not the order of the WordNet ids."""
    folder.mkdir(parents=True)
    wnids = ["n02012849", "n01751748", "n01440764"]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    table = np.zeros((len(wnids), 1), dtype=fields)
    for i, wnid in enumerate(wnids):
        table[i, 0] = (i + 1, wnid, "word, other word")
    savemat(folder / "meta.mat", {"synsets": table})
    of = [PICTURES.get(number, ("n01440764",))[0] for number in range(1, 6)]
    truth = "".join(f"{wnids.index(wnid) + 1}\n" for wnid in of)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return folder


@pytest.fixture
def kaggle(tmp_path):
    """As imagenet-object-localization-challenge.zip unpacks."""
    images(tmp_path / "ILSVRC/Data/CLS-LOC/val")
    annotations(tmp_path / "ILSVRC/Annotations/CLS-LOC/val")
    solution(tmp_path / "LOC_val_solution.csv")
    return tmp_path


def assert_known(found):
    assert found.labels == LABELS
    assert [label for _, label in found] == LABELS
    assert found.classes[0] == "n01440764 tench"
    assert len(found.classes) == len(set(found.classes)) == 1000


def assert_boxes(found):
    for i, (_, width, height, box) in enumerate(PICTURES.values()):
        assert found.boxes(i) == (box,)
        scene = found.scene(i)
        assert scene.image.shape == (height, width, 3)
        assert (scene.boxes, scene.factors["label"]) == ((box,), LABELS[i])
        left, top, right, bottom = box
        inside = np.zeros((height, width), bool)
        inside[top:bottom, left:right] = True
        assert np.array_equal(scene.image[:, :, 0] > 127, inside)


@pytest.mark.parametrize("root", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_it_is_found_from_any_of_its_folders(kaggle, root):
    found = ImageSet(kaggle / root)
    assert_known(found)
    assert_boxes(found)
    batches = ImageBatches(kaggle / root, {"x": Pixels(4)})
    (batch,) = batches
    assert batch["label"].tolist() == [LABELS[i] for i in batch["index"].tolist()]
    facts = batches.provenance()
    assert (facts["data_set"], facts["split"], facts["classes"]) == ("imagenet", "val", 3)


def csv_alone(folder):
    solution(folder / "LOC_val_solution.csv")


def annotations_alone(folder):
    annotations(folder / "Annotations/CLS-LOC/val")


def annotations_beside(folder):
    annotations(folder / "val")


@pytest.mark.parametrize("known", [csv_alone, annotations_alone, annotations_beside])
@pytest.mark.parametrize("by_class", [False, True])
def test_classes_and_boxes_come_from_what_there_is(tmp_path, known, by_class):
    images(tmp_path / "val", by_class)
    known(tmp_path)
    found = ImageSet(tmp_path / "val")
    if by_class and known is annotations_beside:
        for path in (tmp_path / "val").glob("*.xml"):
            (wnid,) = (name for name, *_ in PICTURES.values() if name in path.read_text())
            path.rename(tmp_path / "val" / wnid / path.name)
    order = sorted(range(3), key=LABELS.__getitem__) if by_class else range(3)
    assert found.labels == [LABELS[i] for i in order]
    assert [found.boxes(i) for i in range(3)] == [(list(PICTURES.values())[i][3],) for i in order]


@pytest.mark.parametrize("place", ["val", "ILSVRC2012_devkit_t12/data", "data"])
def test_the_devkit_numbers_classes_in_its_own_way(tmp_path, place):
    images(tmp_path / "val")
    files = devkit(tmp_path / "devkit")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for file in files.iterdir():
        file.rename(tmp_path / place / file.name)
    assert_known(ImageSet(tmp_path))


def test_without_any_of_them_images_have_no_classes_and_boxes_say_where_to_put_them(tmp_path):
    found = ImageSet(images(tmp_path / "val"))
    assert found.labels is None
    assert found[0][1] == -1
    with pytest.raises(
        FileNotFoundError,
        match=r"no boxes to the images in '.*val': put Annotations/CLS-LOC/val or LOC_val_solution",
    ):
        found.boxes(0)


def test_other_data_sets_have_no_boxes(tmp_path):
    jpeg(tmp_path / "a" / "1.jpg", 8, 8)
    with pytest.raises(
        ValueError, match=r"the images in '.*' have no boxes: give ImageNet, or gen"
    ):
        ImageSet(tmp_path).boxes(0)


def test_training_images_are_a_split_whose_boxes_may_be_missing(tmp_path):
    images(tmp_path / "val", by_class=True)
    for i in range(2):
        jpeg(tmp_path / "train" / "n02012849" / f"n02012849_{i}.JPEG", 20, 20)
    known = tmp_path / "Annotations/CLS-LOC/train/n02012849"
    known.mkdir(parents=True)
    (known / "n02012849_1.xml").write_text(voc("x", 20, 20, [("n02012849", 1, 2, 3, 4)]))
    assert len(ImageSet(tmp_path)) == 3
    for found in (ImageSet(tmp_path, split="train"), ImageSet(tmp_path / "train")):
        assert found.labels == [134, 134]
        assert found.boxes(0) == ()
        assert found.boxes(1) == ((1, 2, 4, 5),)
        assert found.boxes(0, torch.nn.Identity()) == ()


def test_boxes_are_cut_to_the_image(tmp_path):
    jpeg(tmp_path / "val" / f"{stem(1)}.JPEG", 20, 10)
    for objects, expected in (
        ([("n01440764", -3, 0, 20, 10)], ((0, 0, 20, 10),)),
        ([("n01440764", 20, 0, 30, 5)], ()),
        ([("n01440764", 1.7, 2, 3, 4), ("n01440764", 0, 0, 0, 0)], ((1, 2, 4, 5), (0, 0, 1, 1))),
    ):
        (tmp_path / "val" / f"{stem(1)}.xml").write_text(voc("x", 20, 10, objects))
        assert ImageSet(tmp_path).boxes(0) == expected


def test_folders_of_other_classes_are_a_folder_of_images(tmp_path):
    jpeg(tmp_path / "val" / "n99999999" / "1.jpg", 8, 8)
    jpeg(tmp_path / "val" / "n01440764" / "1.jpg", 8, 8)
    found = ImageSet(tmp_path)
    assert found.classes == ["n01440764", "n99999999"]
    assert found.names[0] == "val/n01440764/1.jpg"


# Damage

BOMB = (
    '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;">]><annotation><object><name>&c;</name>'
    "</object></annotation>"
)
OUTSIDE = '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "it defines a document type"),
        (OUTSIDE, "it defines a document type"),
        ("", "no element found"),
        ("<annotation><object>", "no element found"),
        ("<annotation><object><name>n01440764</name></object></annotation>", "object has no box"),
        (voc("x", 8, 8, [("a", 1, 2, 3, "x")]), "could not convert string to float: 'x'"),
        (voc("x", 8, 8, [("a", 1, 2, 3, "nan")]), "cannot convert float NaN"),
        (voc("x", 8, 8, [("a", 1, 2, 3, "inf")]), "cannot convert float infinity"),
        ("<annotation>" + " " * 1_000_000 + "</annotation>", "it is too long"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "unknown encoding"),
    ],
)
def test_a_damaged_annotation_is_told(tmp_path, text, why):
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(
        ValueError, match=f"x.xml' is no annotation of PASCAL VOC: .*{why}"
    ) as caught:
        read_voc(str(tmp_path / "x.xml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("h\na,n01440764 1 2 3\n", "a has 4 words, not 5 for each object"),
        ("h\na,n01440764 1 2 3 x\n", "could not convert string to float: 'x'"),
        ("h\na,b,c\n", "too many values to unpack"),
        ("h\na,n01440764 1 2 3 inf\n", "cannot convert float infinity"),
    ],
)
def test_a_damaged_solution_is_told(tmp_path, text, why):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=f"x.csv' is no table of ImageId, PredictionString: {why}"):
        read_solution(str(tmp_path / "x.csv"))


def test_a_devkit_without_its_table_or_with_another_is_told(tmp_path):
    images(tmp_path / "val")
    folder = devkit(tmp_path / "data")
    (folder / "meta.mat").write_bytes(b"no table")
    with pytest.raises(
        ValueError, match=r"truth.txt' and meta.mat are not those of ILSVRC2012_dev"
    ):
        ImageSet(tmp_path)
    (folder / "meta.mat").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"truth.txt' numbers classes as the meta.mat .*: put it beside"
    ):
        ImageSet(tmp_path)
