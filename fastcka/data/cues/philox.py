"""Random numbers as a function of (seed, index): Philox4x32-10 [Salmon et al. 2011]."""

import numpy as np

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Four words of 32 bits for every counter of four; both [n, 4], as uint64.

    In whole numbers alone, so that they are the same everywhere.
    """
    c0, c1, c2, c3 = (counter[:, i] & LOW for i in range(4))
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # below 2^64
        c0, c1, c2, c3 = (
            (right >> HALF) ^ c1 ^ k0,
            right & LOW,
            (left >> HALF) ^ c3 ^ k1,
            left & LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return np.stack([c0, c1, c2, c3], 1)


def words(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """The first `count` words of every index, [len(indices), count]; more do not change them."""
    indices = np.asarray(indices, np.uint64)
    blocks = -(-count // 4)
    counter = np.zeros((len(indices), blocks, 4), np.uint64)
    counter[:, :, 0] = (indices & LOW)[:, None]
    counter[:, :, 1] = (indices >> HALF)[:, None]
    counter[:, :, 2] = np.arange(blocks, dtype=np.uint64)
    drawn = philox(counter.reshape(-1, 4), (seed & 0xFFFFFFFF, seed >> 32))
    return drawn.reshape(len(indices), -1)[:, :count]
