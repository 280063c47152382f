"""Quantisation of grey levels by a palette that is fitted to the pixels of a game."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def fit_palette(pixels: Tensor, num_levels: int) -> Tensor:
    """Fit grey levels to pixels by exact one-dimensional k-means on their histogram (Wang and Song 2011).

    The square roots of the counts are the weights, so that small moving objects get levels beside a large background.

    Args:
        pixels: uint8 pixels of any shape.
        num_levels: number K of levels, at most 256; 256 is the identity.

    Returns:
        (K,) uint8, ascending. A game of fewer than K colours gets all its colours, with the last one repeated.
    """
    histogram = torch.bincount(pixels.flatten().long(), minlength=256).cpu().numpy()
    values = np.flatnonzero(histogram).astype(np.float64)
    if num_levels == 256:
        return torch.arange(256, dtype=torch.uint8)
    if len(values) <= num_levels:
        return torch.from_numpy(np.pad(values, (0, num_levels - len(values)), mode="edge")).to(torch.uint8)
    weight = np.sqrt(histogram[values.astype(np.int64)])
    mass, first, second = (np.concatenate([[0], np.cumsum(weight * values**power)]) for power in (0, 1, 2))
    # cost[i, j]: squared error of one level for values[i:j]
    i, j = np.triu_indices(len(values) + 1, k=1)
    cost = np.full((len(values) + 1, len(values) + 1), np.inf)
    cost[i, j] = second[j] - second[i] - (first[j] - first[i]) ** 2 / (mass[j] - mass[i])
    best, cuts = cost[0], []
    for _ in range(num_levels - 1):
        total = best[:, None] + cost
        cuts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    stops = [len(values)]
    for cut in reversed(cuts):
        stops.append(int(cut[stops[-1]]))
    bounds = np.array([*stops, 0])[::-1]
    levels = (first[bounds[1:]] - first[bounds[:-1]]) / (mass[bounds[1:]] - mass[bounds[:-1]])
    return torch.from_numpy(levels.round()).to(torch.uint8)


def nearest_level(palette: Tensor) -> Tensor:
    """Return the (256,) int64 table that maps a pixel to the index of its nearest level."""
    pixels = torch.arange(256, device=palette.device)
    return (pixels[:, None] - palette.long()).abs().argmin(dim=1)
