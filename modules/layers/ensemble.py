"""Ensembles of networks of one shape, computed in one batched product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """An ensemble of linear layers of one shape, initialised like nn.Linear.

    Args:
        members: number M of layers.
        inputs: number I of input features.
        outputs: number O of output features.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.members = members
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        # Flat: weight decay skips parameters with one dimension.
        self.flat_bias = nn.Parameter(torch.empty(members * outputs).uniform_(-bound, bound))

    @property
    def bias(self) -> Tensor:
        """Return the biases, (M, O)."""
        return self.flat_bias.view(self.members, -1)

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """Map (M, N, I) to (M, N, O), or by one member (N, I) to (N, O)."""
        if member is None:
            return torch.baddbmm(self.bias[:, None], x, self.weight)
        return torch.addmm(self.bias[member], x, self.weight[member])


class EnsembleMLP(nn.Module):
    """An ensemble of multi-layer perceptrons of one shape, with SiLU between the layers.

    Args:
        members: number M of perceptrons.
        inputs: number I of input features.
        hidden: width of the hidden layers.
        layers: number of hidden layers, at least 1.
        outputs: number O of output features.
    """

    def __init__(self, members: int, inputs: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.members = members
        self.input = EnsembleLinear(members, inputs, hidden)
        self.hidden = nn.ModuleList(EnsembleLinear(members, hidden, hidden) for _ in range(layers - 1))
        self.output = EnsembleLinear(members, hidden, outputs)

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """Map (M, N, I) to (M, N, O), or by one member (N, I) to (N, O)."""
        x = F.silu(self.input(x, member))
        for layer in self.hidden:
            x = F.silu(layer(x, member))
        return self.output(x, member)

    def by_group(self, x: Tensor, counts: list[int]) -> Tensor:
        """Map (N, I) to (N, O): the first counts[0] rows by member 0, the next counts[1] by member 1, and so on.

        The cost per row does not depend on the number of members.
        """
        groups = enumerate(x.split(counts))
        return torch.cat([self(group, member) for member, group in groups if len(group)])

    @torch.no_grad()
    def transform_inputs(self, scale: Tensor, shift: Tensor) -> None:
        """Change the first layer so that the new f(x) is the old f(scale * x + shift); scale and shift are (I,)."""
        self.input.bias.add_(shift @ self.input.weight)
        self.input.weight.mul_(scale[:, None])

    @torch.no_grad()
    def transform_outputs(self, scale: Tensor, shift: Tensor) -> None:
        """Change the last layer so that the new f(x) is the old scale * f(x) + shift; scale and shift are (O,)."""
        self.output.weight.mul_(scale)
        self.output.bias.mul_(scale).add_(shift)
