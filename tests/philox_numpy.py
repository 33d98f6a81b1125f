"""Philox4x32-10 and the dropout mask in numpy, written from the papers alone."""

from __future__ import annotations

import numpy as np


def philox4x32_10(counter, key):
    """counter [..., 4], key [..., 2]: uint32 words in, words out."""
    c = [np.asarray(counter)[..., i].astype(np.uint64) for i in range(4)]
    k = [np.asarray(key)[..., i].astype(np.uint64) for i in range(2)]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        low_product = np.uint64(0xD2511F53) * c[0]
        high_product = np.uint64(0xCD9E8D57) * c[2]
        c = [
            (high_product >> shift) ^ c[1] ^ k[0],
            high_product & mask,
            (low_product >> shift) ^ c[3] ^ k[1],
            low_product & mask,
        ]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, axis=-1).astype(np.uint32)


def lanes(n, seed, first=0):
    """The 16-bit lanes of elements first to first + n for an int64 seed."""
    i = np.arange(first, first + n, dtype=np.uint64)
    group = i // np.uint64(8)
    zero = np.zeros_like(group)
    counter = np.stack([group & np.uint64(0xFFFFFFFF), group >> np.uint64(32), zero, zero], -1)
    bits = seed % 2**64
    key = np.array([bits & 0xFFFFFFFF, bits >> 32], dtype=np.uint64)
    words = philox4x32_10(counter, key)
    lane = i % np.uint64(8)
    word = np.take_along_axis(words, (lane // np.uint64(2)).astype(int)[:, None], 1)[:, 0]
    return np.where(lane % np.uint64(2) == 0, word & np.uint32(0xFFFF), word >> np.uint32(16))


def dropout_mask(n, seed, threshold, first=0):
    """Elements first to first + n of the mask of an int64 seed: True = kept."""
    return lanes(n, seed, first) >= threshold
