"""The seam between the search and what it plans in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from modules.world_model import Step

States = Tensor | np.ndarray
"""(B, *state_shape) on the model's device, or a NumPy array (B,) of objects: clones of an emulator, game states."""


class Evaluation(NamedTuple):
    """What is thought of states before they are searched."""

    logits: Any
    """(B, K): unnormalised log prior over the actions; a tensor or an array."""
    value: Any
    """(B,): expected return for the player to move there."""
    actions: Any | None = None
    """(B, K) int: the legal actions, padded with -1; None where column k is action k."""


class Dynamics(Protocol):
    """What an action does: a world model as it is, an emulator, or the rules of a game."""

    def step(self, states: Any, actions: Any) -> Step:
        """Map states (B, ...) and actions (B,) int64 to what comes after; continuation 0 ends it there.

        Actions come as a tensor beside tensors, as an array beside arrays. Whatever is drawn by chance is drawn once
        for every edge of the tree.
        """
        ...


Evaluate = Callable[[Any], Evaluation]
Expand = Callable[[Any, Any], tuple[Step, Evaluation]]
"""`step` and `evaluate` in one call, to be traced or compiled as a whole."""
