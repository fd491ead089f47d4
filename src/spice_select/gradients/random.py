"""Random numbers that depend on a seed and a name alone.

Philox (Salmon et al., SC 2011) is counter-based: the n-th number is a function of the key and n. Only the raw 64-bit
output is used, which numpy keeps stable between versions, and every table is made on the host, so that a sketch is
the same on each device and whatever the order in which layers or examples arrive.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float, Int, Int8
from numpy.random import Philox


class Stream:
    """The numbers that belong to one seed, one name and one purpose; each call starts at the first of them."""

    def __init__(self, seed: int, name: str, purpose: str) -> None:
        digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode()).digest()
        self._key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)

    def raw(self, count: int, start: int = 0) -> np.ndarray:
        """``count`` numbers of 64 bits, from number ``start`` on, which must be a multiple of 4."""
        assert start % 4 == 0
        counter = np.array([start // 4, 0, 0, 0], dtype=np.uint64)
        return Philox(counter=counter, key=self._key).random_raw(count)

    def signs(self, count: int, start: int = 0) -> Int8[np.ndarray, " count"]:
        """Independent signs, +1 or -1, from sign ``start`` on, which must be a multiple of 256."""
        assert start % 256 == 0
        words = self.raw(-(-count // 64), start // 64).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:count]
        return (1 - 2 * bits.astype(np.int8)).astype(np.int8)

    def integers(self, count: int, bound: int) -> Int[np.ndarray, " count"]:
        """Integers from 0 to ``bound - 1``; the bias of the remainder is below ``bound / 2**64``."""
        return (self.raw(count) % np.uint64(bound)).astype(np.int64)

    def uniform(self, count: int) -> Float[np.ndarray, " count"]:
        """Numbers in [0, 1) with 53 random bits."""
        return (self.raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
