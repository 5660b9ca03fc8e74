"""Where what was marked in a picture lies in what a network sees of it."""

from collections.abc import Callable, Sequence


def boxes_after(
    transform: Callable, boxes: Sequence[Sequence[float]], height: int, width: int
) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes after the resizing and cropping of a network's preprocessing.

    Args:
        transform: of timm.data.create_transform, as `Network.transform` gives it, or torchvision's
            of the same steps.
        boxes: left, top, right and bottom in pixels; right and bottom are the first outside.
        height, width: of the image, in pixels.

    Returns:
        The same of the tensor, as numbers with fractions, cut to it; those that lie outside are
        left out.

    Raises:
        ValueError: a step is none whose geometry is known.

    >>> from timm.data import create_transform
    >>> boxes_after(create_transform(224, crop_pct=0.875), [(0, 0, 400, 300)], 300, 400)
    ((0.0, 0.0, 224.0, 224.0),)
    """
    import torch
    from torchvision.tv_tensors import BoundingBoxes

    if not len(boxes):
        return ()
    found = BoundingBoxes(
        torch.tensor(boxes, dtype=torch.float64), format="XYXY", canvas_size=(height, width)
    )
    for step in getattr(transform, "transforms", [transform]):
        found = _after(step, found)
    height, width = found.canvas_size
    edges = torch.tensor([width, height, width, height], dtype=torch.float64)
    cut = torch.minimum(found.as_subclass(torch.Tensor).clamp(min=0), edges).tolist()
    return tuple(tuple(box) for box in cut if box[0] < box[2] and box[1] < box[3])


def _after(step: Callable, boxes):
    import torch
    from timm.data import transforms as timm
    from torchvision import transforms
    from torchvision.transforms.v2 import functional

    height, width = boxes.canvas_size
    if isinstance(step, transforms.Resize):
        return functional.resize(boxes, step.size, max_size=step.max_size)
    random = ("random_scale_prob", "random_aspect_prob")
    if isinstance(step, timm.ResizeKeepRatio) and not any(getattr(step, name) for name in random):
        blank = torch.empty(1, height, width, device="meta")
        return functional.resize(boxes, list(step.get_params(blank, step.size, step.longest)))
    if isinstance(step, (transforms.CenterCrop, timm.CenterCropOrPad)):
        tall, wide = step.size
        # As of images, where less than half a pixel more is added behind than before.
        down, across = max(0, tall - height), max(0, wide - width)
        around = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
        return functional.center_crop(functional.pad(boxes, around), [tall, wide])
    values_alone = (
        *(transforms.ToTensor, transforms.PILToTensor, transforms.Normalize),
        *(transforms.ConvertImageDtype, timm.MaybeToTensor, timm.MaybePILToTensor),
    )
    if isinstance(step, values_alone):
        return boxes
    raise ValueError(
        f"`transform` has the step {step!r}, and where it puts a pixel is not known: give "
        "resizing, cropping at the centre, and what changes values alone"
    )
