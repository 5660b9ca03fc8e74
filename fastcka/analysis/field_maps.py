"""What is read off a map of a receptive field: how much lies where."""

import numbers

import torch


def patch_masses(maps: torch.Tensor, patch: int) -> torch.Tensor:
    """The share of the mass that lies in each patch.

    Args:
        maps: [..., height, width], not negative; summed in float64.
        patch: pixels a side; both sides of the map must be multiples of it.

    Returns:
        float64 [..., height / patch, width / patch], which sum to 1; NaN of a map without mass.

    Raises:
        TypeError, ValueError: `maps` is no floating tensor of two axes or more, or `patch` does
            not divide its sides.

    >>> patch_masses(torch.tensor([[3.0, 0, 0, 1]] * 2), 2)
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    maps = _checked(maps)
    height, width = maps.shape[-2:]
    if not isinstance(patch, numbers.Integral) or patch < 1 or height % patch or width % patch:
        raise ValueError(
            f"`patch` must be a number of pixels that divides the {height} by {width} of the map, "
            f"but is {patch!r}"
        )
    cells = maps.unflatten(-1, (width // patch, patch)).unflatten(-3, (height // patch, patch))
    masses = cells.sum((-3, -1))
    return masses / masses.sum((-2, -1), keepdim=True)


def centre_share(maps: torch.Tensor, patch: int) -> torch.Tensor:
    """The share of the mass within the centre patch, which is (rows // 2, columns // 2).

    With an even number of patches that is the one behind and below the middle of the image.

    Args, Raises: as of `patch_masses`.

    Returns:
        float64 [...], from 0 to 1.

    >>> centre_share(torch.ones(6, 6), 2)
    tensor(0.1111, dtype=torch.float64)
    """
    masses = patch_masses(maps, patch)
    return masses[..., masses.shape[-2] // 2, masses.shape[-1] // 2]


def mass_radius(maps: torch.Tensor, centre, share: float = 0.5) -> torch.Tensor:
    """The smallest r such that pixels no further than r from a centre hold a share of the mass.

    Distances are those between centres of pixels, so r of a single pixel at the centre is 0.

    Args:
        maps: [..., height, width], not negative; summed in float64.
        centre: (row, column) in pixels from the centre of the first; may lie between pixels. One
            for all maps, or a tensor [..., 2].
        share: above 0, at most 1.

    Returns:
        float64 [...], pixels; NaN of a map without mass.

    Raises:
        TypeError, ValueError: `maps` is no floating tensor of two axes or more, `centre` is no
            pair, or `share` is outside (0, 1].

    >>> mass_radius(torch.tensor([[0.0, 2, 1, 1]]), (0, 1), share=0.75)
    tensor(1., dtype=torch.float64)
    """
    maps = _checked(maps)
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be above 0 and at most 1, but is {share!r}")
    centre = torch.as_tensor(centre, dtype=torch.float64, device=maps.device)
    if centre.ndim == 0 or centre.shape[-1] != 2:
        raise ValueError(f"`centre` must be (row, column), but has shape {list(centre.shape)}")
    rows, columns = (
        torch.arange(size, device=maps.device, dtype=torch.float64) for size in maps.shape[-2:]
    )
    down, right = rows - centre[..., :1], columns - centre[..., 1:]
    distances = (down[..., :, None] ** 2 + right[..., None, :] ** 2).expand(maps.shape).flatten(-2)
    distances, order = distances.sort(dim=-1, stable=True)
    held = maps.flatten(-2).gather(-1, order).cumsum(-1)
    total = held[..., -1:]
    # What rounding of the sum leaves out is no reason to go on to the next pixel.
    place = (held < share * total * (1 - 1e-12)).sum(-1, keepdim=True)
    radius = distances.gather(-1, place).sqrt()
    return torch.where(total > 0, radius, torch.nan)[..., 0]


def axis_variance(maps: torch.Tensor) -> torch.Tensor:
    """The variance of the mass about its own mean, along rows and along columns.

    Args:
        maps: [..., height, width], not negative; summed in float64.

    Returns:
        float64 [..., 2], square pixels; NaN of a map without mass.

    Raises:
        TypeError, ValueError: `maps` is no floating tensor of two axes or more.

    >>> axis_variance(torch.ones(1, 3))
    tensor([0.0000, 0.6667], dtype=torch.float64)
    """
    maps = _checked(maps)
    variances = []
    for axis in (-1, -2):  # summed over columns, the rows are left
        mass = maps.sum(axis)
        mass = mass / mass.sum(-1, keepdim=True)
        place = torch.arange(mass.shape[-1], device=mass.device, dtype=torch.float64)
        mean = (mass * place).sum(-1, keepdim=True)
        variances.append((mass * (place - mean) ** 2).sum(-1))
    return torch.stack(variances, -1)


def _checked(maps: torch.Tensor) -> torch.Tensor:
    if not isinstance(maps, torch.Tensor) or not maps.is_floating_point():
        kind = maps.dtype if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise TypeError(f"`maps` must be a floating tensor [..., height, width], but is {kind}")
    if maps.ndim < 2 or maps.numel() == 0:
        raise ValueError(f"`maps` must be [..., height, width], but has shape {list(maps.shape)}")
    return maps.double()
