"""The linear probe of a few images: regularised least squares, in closed form."""

from dataclasses import dataclass

import torch

LAMBDAS = tuple(2.0**k for k in range(-10, 21))
EPS = 1e-5
BIAS = 100.0
SCORES = 2**24  # so many scores are held at once


@dataclass(frozen=True)
class RidgePath:
    """Probes of features, fitted for every lambda at once.

    Features are standardised by the mean and the standard deviation + 1e-5 of the images fitted, a
    constant feature of 100 makes a bias that is hardly regularised, the targets Y are +1 for the
    class of an image and -1 for the others, and W = (AᵀA + lambda I)⁻¹ AᵀY with A the features and
    the constant [as in the probes of Raghu et al. 2021]. Standardised features have no mean, so
    the constant stands apart in AᵀA: what is solved is exactly that problem, without the constant,
    beside a bias of 10⁴N/(10⁴N + lambda) times the mean of Y. A feature that is the same in all
    images fitted counts for nothing; a class without images is never the highest.

    Made by `fit`. Numbers are float64 on the device of the features.

    Attributes:
        lambdas: as given to `fit`.
        classes: how many there are.

    >>> features, labels = torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.tensor([0, 0, 1, 1])
    >>> path = RidgePath.fit(features, labels, 2, lambdas=[0.5, 8.0])
    >>> path.scores(torch.tensor([[0.0], [9.0]]), 0.5).argmax(1).tolist()
    [0, 1]
    >>> path.accuracy(features, labels).tolist()
    [1.0, 1.0]
    """

    lambdas: tuple[float, ...]
    classes: int
    _images: int
    _mean: torch.Tensor  # [..., 1, D]
    _scale: torch.Tensor  # [..., 1, D]
    _basis: torch.Tensor  # [..., D, R]: W = basis diag(1 / (spectrum + lambda)) coefficients
    _spectrum: torch.Tensor  # [..., R]
    _coefficients: torch.Tensor  # [..., R, C]
    _target: torch.Tensor  # [C], the mean of the targets

    @classmethod
    def fit(
        cls,
        features: torch.Tensor,
        labels: torch.Tensor,
        classes: int,
        lambdas=LAMBDAS,
        dtype: torch.dtype = torch.float64,
    ) -> "RidgePath":
        """Factorise once: AᵀA where there are as many images as features, else AAᵀ.

        Args:
            features: [..., N, D] of any floating type, a probe for each of the leading axes.
            labels: [N], integers from 0 to classes - 1.
            classes: how many there are.
            lambdas: above 0, in units of squared standardised features summed over the images.
            dtype: of the products and the factorisation. float32 takes half the memory; scores at
                lambda then err by some 10⁻⁶ s/lambda of themselves, with s ≤ N·D the largest
                eigenvalue: below 1 % from lambda = 10⁻⁴ N·D on.

        Raises:
            TypeError, ValueError: features or labels are not these, or are not finite; fewer than
                2 images; a lambda that is not above 0.

        Cost: 2·N·D·min(N, D) + 10·min(N, D)³ flop a probe, and memory for some 4 copies of the
        features and min(N, D)·(D + classes) numbers in `dtype`.
        """
        _check_features(features)
        images, width = features.shape[-2:]
        if images < 2:
            raise ValueError(f"`features` must be of at least 2 images to fit, but are of {images}")
        check_labels("labels", labels, classes, images)
        lambdas = tuple(float(lam) for lam in lambdas)
        if not lambdas or not all(0 < lam < float("inf") for lam in lambdas):
            raise ValueError(f"`lambdas` must be one or more numbers above 0, but are {lambdas}")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"`dtype` must be torch.float64 or torch.float32, not {dtype}")
        x = features.double()
        mean = x.mean(-2, keepdim=True)
        varies = x.amax(-2, keepdim=True) > x.amin(-2, keepdim=True)
        scale = varies / (x.std(-2, correction=0, keepdim=True) + EPS)
        z = ((x - mean) * scale).to(dtype)
        del x
        y = targets(labels.to(z.device), classes, dtype)
        target = y.mean(0)
        y = y - target
        if images >= width:
            spectrum, basis = torch.linalg.eigh(z.mT @ z)
            coefficients = basis.mT @ (z.mT @ y)
        else:
            spectrum, vectors = torch.linalg.eigh(z @ z.mT)
            basis, coefficients = z.mT @ vectors, vectors.mT @ y
        spectrum = spectrum.clamp(min=0)  # rounding may leave a little below
        return cls(lambdas, classes, images, mean, scale, basis, spectrum, coefficients, target)

    def scores(self, features: torch.Tensor, lam: float | torch.Tensor) -> torch.Tensor:
        """Scores [..., M, classes] of images by their features [..., M, D].

        Args:
            features: with the leading axes of those fitted.
            lam: any number above 0, or one a probe.

        Raises: as `fit`.
        """
        self._check(features)
        lam = torch.as_tensor(lam, dtype=torch.float64, device=self._basis.device)
        if not bool((lam > 0).all()):
            raise ValueError(f"`lam` must be above 0, but is {lam.tolist()}")
        return self._scores(self._project(features), lam)

    def accuracy(
        self, features: torch.Tensor, labels: torch.Tensor, lam: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Share of images whose highest score is that of their label; of equal ones the first.

        Args:
            features: [..., M, D]. labels: [M].
            lam: one for each probe; None is every one of `lambdas`.

        Returns:
            [..., lambdas], or [...] with `lam`; float64, from 0 to 1.

        Raises: as `fit`.

        Cost: 2·M·min(N, D)·(D + classes·lambdas) flop a probe.
        """
        self._check(features)
        images = features.shape[-2]
        check_labels("labels", labels, self.classes, images)
        labels = labels.to(self._basis.device)
        device, probes = self._basis.device, self._spectrum[..., 0]
        if lam is None:
            lams = [torch.tensor(value, device=device).double() for value in self.lambdas]
        else:
            lams = [torch.as_tensor(lam, dtype=torch.float64, device=device)]
        right = torch.zeros(*probes.shape, len(lams), dtype=torch.float64, device=device)
        rows = max(1, SCORES // (probes.numel() * max(self.classes, features.shape[-1])))
        for start in range(0, images, rows):
            part = slice(start, start + rows)
            projected = self._project(features[..., part, :])
            for i, value in enumerate(lams):
                found = self._scores(projected, value).argmax(-1)  # the first of the highest
                right[..., i] += (found == labels[part]).sum(-1)
        right /= images
        return right if lam is None else right[..., 0]

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        z = (features.double() - self._mean) * self._scale
        return z.to(self._basis.dtype) @ self._basis

    def _scores(self, projected: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        shrunk = self._spectrum.double() + lam[..., None]
        solution = self._coefficients / shrunk[..., None].to(self._coefficients.dtype)
        weight = BIAS**2 * self._images
        bias = (weight / (weight + lam))[..., None, None] * self._target
        return projected @ solution + bias.to(projected.dtype)

    def _check(self, features: torch.Tensor) -> None:
        if isinstance(features, torch.Tensor) and features.device != self._basis.device:
            raise RuntimeError(
                f"`features` must be on {self._basis.device} as those fitted, but are on "
                f"{features.device}"
            )
        _check_features(features)
        fitted = [*self._mean.shape[:-2], self._mean.shape[-1]]
        given = [*features.shape[:-2], features.shape[-1]]
        if given != fitted:
            raise ValueError(
                f"`features` must be {_shape(fitted)} as those fitted, but are {_shape(given)}"
            )


def targets(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """[N, classes]: +1 for the label, -1 for the others."""
    y = torch.full((len(labels), classes), -1.0, dtype=dtype, device=labels.device)
    return y.scatter_(1, labels.long()[:, None], 1.0)


def _check_features(features: torch.Tensor) -> None:
    """Refuse what is no [..., N, D] of finite numbers."""
    if not isinstance(features, torch.Tensor) or not features.is_floating_point():
        kind = getattr(features, "dtype", type(features).__name__)
        raise TypeError(f"`features` must be a floating tensor [..., images, features], not {kind}")
    if features.ndim < 2 or 0 in features.shape:
        raise ValueError(
            "`features` must be [..., images, features], none of them 0, but is "
            f"{list(features.shape)}"
        )
    bad = ~features.isfinite().flatten(-2).all(-1)
    if bad.any():
        probe = [] if bad.ndim == 0 else bad.nonzero()[0].tolist()
        where = f" of probe {probe}" if probe else ""
        raise ValueError(
            f"`features`{where} hold inf or nan, of which no probe can be made; leave that layer "
            "or token out, or run the network in float32"
        )


def check_labels(name: str, labels: torch.Tensor, classes: int, images: int | None = None) -> None:
    """Refuse what is no label for each image."""
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"`classes` must be 1, 2, 3, …, but is {classes!r}")
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"`{name}` must be a tensor of integers [images], not {kind}")
    if labels.ndim != 1 or len(labels) == 0 or images not in (None, len(labels)):
        wanted = "images" if images is None else f"{images} images"
        raise ValueError(
            f"`{name}` must be one for each of the {wanted}, but is {list(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"`{name}` must be from 0 to {classes - 1} for {classes} classes, but are from {low} "
            f"to {high}"
        )


def _shape(axes: list[int]) -> str:
    """[..., N, D] without N: [3, images, 768]."""
    return f"[{', '.join(map(str, [*axes[:-1], 'images', axes[-1]]))}]"
