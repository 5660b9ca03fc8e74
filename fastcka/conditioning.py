"""When a layer's centred Gram matrix holds nothing but rounding, or has lost digits."""

import torch

# A layer is constant where what is left after centring is no more than the rounding of
#   (1) the products: |U| <= PRODUCTS · eps · |K without its diagonal|. Products of one sign, added
#       up in float32 in blocks of 256 to 16,384, err by up to some ten eps.
#   (2) the values: sqrt(Σ|x_i − c|²) <= VALUES · eps · sqrt(Σ|x_i|²). A value computed twice, in
#       different orders, differs by some eps.
# eps is that of the accumulator: 2^-23, and 2^-52 for float64 activations. Sums run over batches.
PRODUCTS = 32.0
VALUES = 4.0
# |K without its diagonal| / |U| beyond which rounding in float32 may show in CKA's fifth digit.
DIGITS_LOST = 300.0

# Share of an HSIC below which a difference of float64 sums is their rounding: some hundred eps.
CANCELLED = 2.0**-40

# Columns of the sums that decide, the first four of the summary of kernels.finish.
CENTRED, HOLLOW, SPREAD, RAW = range(4)


def is_constant(sums: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Which layers do not vary: sums [L, 4] over all batches, eps [L, 2] -> [L] bool.

    eps: of the sums of products, and of the Gram matrix (float64 where it is Gaussian).
    """
    values = sums[:, SPREAD] <= (VALUES * eps[:, 0]) ** 2 * sums[:, RAW]
    products = sums[:, CENTRED] <= (PRODUCTS * eps[:, 1]) ** 2 * sums[:, HOLLOW]
    return values | products


def has_lost_digits(sums: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Where centring leaves less than 1/DIGITS_LOST of a Gram matrix added up in float32."""
    in_float32 = eps[:, 1] > torch.finfo(torch.float64).eps
    return in_float32 & (sums[:, HOLLOW] > DIGITS_LOST**2 * sums[:, CENTRED])


def least_share(sums: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The share of its HSIC up to which what is left of a layer, without an example, is rounding.

    By the rule for products above (PRODUCTS · eps)² · |K|² of |U|². The closed form takes rows of U
    to sum to 0, which they do to 2^-52 of |K|, and what it subtracts is rounded too. Arguments as
    of `is_constant`; [L].
    """
    lost = PRODUCTS * (sums[:, HOLLOW] / sums[:, CENTRED]).sqrt()
    centring = lost * torch.finfo(torch.float64).eps
    return torch.maximum((lost * eps[:, 1]) ** 2, centring).clamp(min=CANCELLED)
