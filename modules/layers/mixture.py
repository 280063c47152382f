"""Mixtures of Gaussians, one for every number of a vector (Bishop 1994; Graves 2013, section 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_LOG_STD = -6.0
"""Lower bound of the log standard deviation: a component on a single number would have an infinite density."""


class Mixture(NamedTuple):
    """K Gaussians for each of D numbers."""

    logits: Tensor
    """(..., D, K): logits of the components."""
    mean: Tensor
    """(..., D, K): means of the components."""
    log_std: Tensor
    """(..., D, K): log standard deviations of the components."""


def mixture(output: Tensor, size: int) -> Mixture:
    """Read a mixture off the output (..., 3 * D * K) of a network, D being `size`."""
    logits, mean, raw = output.float().unflatten(-1, (3, size, -1)).unbind(-3)
    return Mixture(logits, mean, MIN_LOG_STD + F.softplus(raw - MIN_LOG_STD))


def log_density(mixture: Mixture, value: Tensor) -> Tensor:
    """Return the logarithm of the density (..., D) of each number of a vector (..., D)."""
    distance = (value[..., None] - mixture.mean) * (-mixture.log_std).exp()
    components = -0.5 * distance.square() - mixture.log_std - 0.5 * math.log(2 * math.pi)
    return (components + mixture.logits.log_softmax(dim=-1)).logsumexp(dim=-1)


def draw(mixture: Mixture, temperature: float = 1.0) -> Tensor:
    """Draw a vector (..., D).

    A temperature tau divides the logits of the components and multiplies their variances (Ha & Schmidhuber 2018,
    appendix A.2); 0 takes the likeliest component's mean.
    """
    if temperature == 0:
        index = mixture.logits.argmax(dim=-1, keepdim=True)
        return mixture.mean.gather(-1, index)[..., 0]
    shares = (mixture.logits / temperature).softmax(dim=-1).cumsum(dim=-1)
    # Inverse transform sampling: the component is the number of shares, except the last, below a uniform number.
    index = (shares[..., :-1] < torch.rand_like(shares[..., :1])).sum(dim=-1, keepdim=True)
    mean, log_std = mixture.mean.gather(-1, index)[..., 0], mixture.log_std.gather(-1, index)[..., 0]
    return mean + math.sqrt(temperature) * log_std.exp() * torch.randn_like(mean)
