"""A box after a network's preprocessing lies where its pixels do."""

import pytest
import torch
from PIL import Image
from test_imagenet import annotations, images
from timm.data import create_transform
from torch import nn
from torchvision import transforms

from fastcka.data import ImageSet, boxes_after

SIZES = [(300, 400), (400, 300), (224, 224), (97, 331), (40, 30)]
KINDS = {
    "center": create_transform(224, crop_pct=0.875),
    "whole": create_transform(224, crop_pct=1.0),
    "squash": create_transform(224, crop_pct=0.9, crop_mode="squash"),
    "border": create_transform(224, crop_pct=0.95, crop_mode="border"),
    "not square": create_transform((3, 160, 224), crop_pct=0.9),
    "crop alone": transforms.Compose([transforms.CenterCrop(151), transforms.ToTensor()]),
    "one step": transforms.Resize((90, 120)),
    "longest": transforms.Compose([transforms.Resize(200, max_size=230), transforms.PILToTensor()]),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_box_is_where_its_pixels_are(kind, size):
    height, width = size
    box = (width // 4, height // 3, width // 4 + width // 2, height // 3 + height // 2)
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 255, 0), box)
    seen = KINDS[kind](image)
    seen = seen if isinstance(seen, torch.Tensor) else transforms.functional.to_tensor(seen)
    green = seen[1].double()
    inside = green > (green.min() + green.max()) / 2
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    pixels = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    ((found),) = boxes_after(KINDS[kind], [box], height, width)
    # Half a pixel of rounding, and half of where an edge is said to be; enlarged, as much again.
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor(pixels, dtype=torch.float64).to(torch.float32),
        rtol=0, atol=1.01, check_dtype=False,
    )  # fmt: skip


def test_closed_form():
    # 400 x 300 to 341 1/3 x 256, of which 224 in the middle: 58 (of 58.67) and 16 are cut off.
    ((left, top, right, bottom),) = boxes_after(KINDS["center"], [(100, 75, 300, 225)], 300, 400)
    # The ratios are float32.
    assert (top, bottom) == pytest.approx((75 * 256 / 300 - 16, 225 * 256 / 300 - 16), abs=1e-4)
    assert left == pytest.approx(100 * 341 / 400 - 58, abs=0.6)
    assert right == pytest.approx(300 * 341 / 400 - 58, abs=0.6)


def test_what_lies_outside_is_left_out_and_the_rest_is_cut():
    crop = transforms.CenterCrop(100)
    given = [(0, 0, 40, 40), (0, 0, 70, 60), (60, 60, 300, 300)]
    assert boxes_after(crop, given, 200, 200) == ((0, 0, 20, 10), (10, 10, 100, 100))
    assert boxes_after(crop, [], 200, 200) == ()


@pytest.mark.parametrize(
    "step",
    [
        transforms.RandomCrop(10),
        nn.Identity(),
        lambda image: image,
        create_transform(64, is_training=True),
        transforms.Compose([KINDS["center"].transforms[0], transforms.RandomHorizontalFlip()]),
    ],
)
def test_what_moves_pixels_otherwise_is_refused(step):
    with pytest.raises(ValueError, match=r"`transform` has the step .*, and where it puts a pixel"):
        boxes_after(step, [(0, 0, 5, 5)], 20, 20)


def test_boxes_of_a_picture_as_a_network_sees_it(tmp_path):
    images(tmp_path / "val")
    annotations(tmp_path / "Annotations/CLS-LOC/val")
    found = ImageSet(tmp_path)
    crop = create_transform(20, crop_pct=1.0)
    # 60 x 40 pixels halved, and 5 cut off on each side.
    assert found.boxes(0, crop) == ((0.0, 2.5, 10.0, 12.5),)
