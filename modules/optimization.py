"""Optimizer and learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from modules.errors import UserError, check_range


@dataclass(frozen=True)
class Optimization:
    """An optimizer and the schedule of its learning rate.

    Args:
        lr: peak learning rate.
        weight_decay: weight decay of parameters with two or more dimensions; biases and gains are not decayed.
        warmup: number of first updates over which the learning rate rises from 0.
        decay: let the learning rate fall to 0 along a cosine over the run's `max_steps`.
        optimizer: "adamw", or "sgd" with a momentum of 0.9.
        eps: constant that AdamW adds to the root of the second moment; a larger one makes smaller steps where gradients
            are tiny.
        fused: step AdamW by one kernel per parameter, which is faster and rounds differently.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 0
    decay: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    eps: float = 1e-8
    fused: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup", "eps"):
            check_range(f"optimization.{name}", getattr(self, name), 0)

    def groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Return two parameter groups: weights with weight decay, biases and gains without."""
        learned = [p for p in parameters if p.requires_grad]
        weights, others = [p for p in learned if p.ndim >= 2], [p for p in learned if p.ndim < 2]
        shared: dict[str, Any] = {"lr": self.lr}
        if self.optimizer == "adamw":
            shared |= {"eps": self.eps} | ({"fused": True} if self.fused else {})
        return [
            {"params": weights, "weight_decay": self.weight_decay, **shared},
            {"params": others, "weight_decay": 0.0, **shared},
        ]

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimizer over parameter groups."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=0.9)
        return torch.optim.AdamW(groups)

    def schedule(self, trainer: Any) -> Callable[[int], float]:
        """Return the function from an update to the factor of its learning rate: warm-up and, if set, cosine decay.

        Raises:
            UserError: `decay` is set, but the run has no end.
        """
        total = trainer.estimated_stepping_batches if self.decay else math.inf
        if self.decay and math.isinf(total):
            raise UserError("optimization.decay needs the run's length: set trainer.max_steps or trainer.max_epochs")

        def factor(update: int) -> float:
            rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
            fall = 0.5 * (1 + math.cos(math.pi * min(1.0, update / total))) if self.decay else 1.0
            return rise * fall

        return factor
