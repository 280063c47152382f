"""Returns as categorical distributions over fixed atoms (C51: Bellemare et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Atoms(nn.Module):
    """Evenly spaced returns from `low` to `high`, the support of a categorical distribution.

    Args:
        number: number of atoms.
        low: return of the first atom.
        high: return of the last atom.
    """

    returns: Tensor
    """(atoms,): the return of each atom."""

    def __init__(self, number: int, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("returns", torch.linspace(low, high, number), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """Map logits (..., atoms) to the expected returns (...)."""
        return logits.softmax(dim=-1) @ self.returns

    def project(self, probabilities: Tensor, returns: Tensor) -> Tensor:
        """Return the probabilities (..., atoms) of the atoms, given those of other returns (..., atoms).

        Each probability is shared between the two atoms beside its return, in proportion to closeness; a return
        outside the range counts for the nearest atom (Bellemare et al. 2017, equation 7).
        """
        spacing = (self.high - self.low) / (len(self.returns) - 1)
        distance = (returns.clamp(self.low, self.high)[..., None, :] - self.returns[:, None]).abs()
        return ((1 - distance / spacing).clamp(min=0) * probabilities[..., None, :]).sum(dim=-1)
