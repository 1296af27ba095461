"""The next token from logits; the C++ runtime draws the same ones for the same seed.

docs/runtime-contract.md has the rules. Sums run in the order of ids, in double: np.cumsum is
sequential where np.sum adds in pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hydrapack.support.errors import Invalid

_MASK = (1 << 64) - 1


class Sampler:
    """Draws of one seed: SplitMix64 (https://prng.di.unimi.it/splitmix64.c)."""

    def __init__(self, seed: int) -> None:
        """``seed``: from 0 to 2^64 - 1."""
        self._state = seed

    def uniform(self) -> float:
        """The next number of [0, 1): 53 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        x = self._state
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
        return ((x ^ x >> 31) >> 11) * 2.0**-53

    def pick(
        self,
        logits: NDArray[np.float32],
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> int:
        """The id of the next token.

        Args:
            logits: (V,).
            temperature: 0 for the first of the largest, with no draw.
            top_k: candidates are so many of the largest (of equal ones the lower id); 0 for all.
            top_p: of those, the fewest that have this share of their weight.

        Raises:
            Invalid: a logit is NaN or infinite.
        """
        if not np.isfinite(logits).all():
            raise Invalid("the model gives NaN or infinity")
        # As in the C++ runtime, whose options are float32.
        temperature, top_p = float(np.float32(temperature)), float(np.float32(top_p))
        if temperature == 0:
            return int(logits.argmax())
        ids = _largest(logits, top_k)
        values = logits[ids].astype(np.float64)
        weights = np.exp((values - values.max()) / temperature)
        if top_p < 1:
            kept = _nucleus(values, weights, top_p)
            ids, weights = ids[kept], weights[kept]
        sums = np.cumsum(weights)
        drawn = int(np.searchsorted(sums, self.uniform() * sums[-1], side="right"))
        return int(ids[min(drawn, len(ids) - 1)])


def _largest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids (rising) of the ``count`` largest; of equal ones the lower; 0 for all."""
    if not 0 < count < len(logits):
        return np.arange(len(logits))
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _nucleus(
    values: NDArray[np.float64], weights: NDArray[np.float64], top_p: float
) -> NDArray[np.intp]:
    """Places (rising) of the fewest, heaviest first, whose weights reach top_p of the total."""
    total = np.cumsum(weights)[-1]
    # Those below this share cannot be needed, even all together: the sort is of the rest alone.
    places = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    # Stable: of equal logits the lower id comes first.
    places = places[np.argsort(-values[places], kind="stable")]
    reached = int(np.searchsorted(np.cumsum(weights[places]), top_p * total, side="left"))
    return np.sort(places[: reached + 1])
