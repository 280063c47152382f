"""Values and rewards of any size, as distributions over a fixed support (Schrittwieser et al. 2020, appendix F)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.errors import UserError

EPSILON = 1e-3


def compress(x: Tensor) -> Tensor:
    """Return h(x) = sign(x)(sqrt(|x| + 1) - 1) + 0.001 x (Pohlen et al. 2018, proposition A.2)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + EPSILON * x


def expand(x: Tensor) -> Tensor:
    """Return the inverse of `compress`."""
    # The textbook's (sqrt(1 + 4 e u) - 1) / (2 e) loses four digits of float32 where u is small.
    u = x.abs() + 1 + EPSILON
    root = 2 * u / ((1 + 4 * EPSILON * u).sqrt() + 1)
    return x.sign() * (root.square() - 1)


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) log(|x| + 1) (Hafner et al. 2023, equation 9)."""
    return x.sign() * x.abs().log1p()


def two_hot(x: Tensor, size: int) -> Tensor:
    """Spread numbers (...) over the two integers beside them: weights (..., size) over -(size // 2) .. size // 2.

    The mean of the weighted integers is x. Numbers outside the range are clamped to its edge.
    """
    limit = size // 2
    place = x.clamp(-limit, limit) + limit
    # An upper edge lies wholly on the last integer, which is then `above`.
    below = place.floor().clamp(max=size - 2)
    share = (place - below)[..., None]
    weights = x.new_zeros(*x.shape, size)
    weights.scatter_(-1, below.long()[..., None], 1 - share)
    return weights.scatter_(-1, below.long()[..., None] + 1, share)


class Support(nn.Module):
    """A scalar as a categorical distribution over the integers -(size // 2) .. size // 2 of its compressed value.

    Args:
        size: odd number of integers; 601, as in MuZero, reaches 58,705 and 51 reaches 642.
    """

    integers: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 3 or size % 2 == 0:
            raise UserError(f"a support is an odd number of at least 3 integers around 0: got {size}")
        self.size = size
        self.register_buffer("integers", torch.arange(size).float() - size // 2, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Map scalars (...) to weights (..., size)."""
        return two_hot(compress(x), self.size)

    def decode(self, logits: Tensor) -> Tensor:
        """Map logits (..., size) to their expected scalars (...)."""
        return expand((logits.float().softmax(dim=-1) * self.integers).sum(dim=-1))

    def losses(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return the cross-entropy (...) of logits (..., size) to scalars (...)."""
        return -(self.encode(x) * logits.float().log_softmax(dim=-1)).sum(dim=-1)
