"""A cosine with the same last bit everywhere, which those of libraries do not promise."""

import numpy as np

# Taylor coefficients of cos(2 pi t) in t^2: twelve are enough for 1e-16 on |t| <= 1/4.
_TERMS = [1.0]
for _k in range(1, 13):
    _TERMS.append(-_TERMS[-1] * (2 * np.pi) ** 2 / ((2 * _k - 1) * (2 * _k)))


def cosine(turns):
    """cos(2 pi t), to 1e-15, of sums and products alone, which IEEE 754 fixes to the bit."""
    turns = np.abs(turns - np.rint(turns))  # 0 to 1/2
    mirrored = turns > 0.25
    square = np.where(mirrored, 0.5 - turns, turns) ** 2
    value = _TERMS[-1]
    for term in _TERMS[-2::-1]:
        value = value * square + term
    return np.where(mirrored, -value, value)


def sine(turns):
    """sin(2 pi t), likewise."""
    return cosine(turns - 0.25)
