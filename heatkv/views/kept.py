"""What a policy that chooses token by token holds of every source, in one picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.tokens import TokenCache


def kept_share(cache: TokenCache) -> npt.NDArray[np.float64]:
    """Share of the tokens of every source that each head holds now, of the first batch row: the prompt's own.

    Shape ``(layers, heads, sources)`` with the sources that may be cached.
    """
    geometry = cache.geometry
    starts = [start for start, _ in geometry.scales.bounds]
    tokens_S = np.array(geometry.scales.tokens[:-1])
    kept_LHS = np.zeros((geometry.layers, geometry.heads, len(tokens_S)))
    for layer in range(geometry.layers):
        for head, positions in enumerate(cache.held_positions(layer)[: geometry.heads]):
            kept_LHS[layer, head] = np.histogram(positions.numpy(), starts)[0] / tokens_S
    return kept_LHS
