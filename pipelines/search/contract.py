"""The interface between the search and the dynamics that it plans in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from modules.world_model import Step

States = Tensor | np.ndarray
"""Tensor (B, *state_shape) on the model's device, or NumPy array (B,) of objects: emulator clones, game states."""


class Evaluation(NamedTuple):
    """Prior logits and value of a batch of states, before they are searched."""

    logits: Any
    """(B, K) tensor or array: unnormalised log prior over the actions."""
    value: Any
    """(B,): expected return for the player to move."""
    actions: Any | None = None
    """(B, K) int: legal actions, padded with -1; None if column k is action k."""


class Dynamics(Protocol):
    """The transition function of a world model, an emulator or the rules of a game."""

    def step(self, states: Any, actions: Any) -> Step:
        """Map states (B, ...) and actions (B,) int64 to next states, rewards and continuations.

        A continuation of 0 ends the episode. Actions are a tensor if the states are a tensor, else an array. A
        stochastic outcome is sampled once per edge of the tree.
        """
        ...


Evaluate = Callable[[Any], Evaluation]
Expand = Callable[[Any, Any], tuple[Step, Evaluation]]
"""One call for `step` and `evaluate`, which can be traced or compiled as a whole."""
