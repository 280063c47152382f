"""Rounds of updates: which part learns at which update."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from modules.errors import UserError


class Turn(NamedTuple):
    """The position of an update in the rounds, and the parts that it trains."""

    number: int
    """Index of the round, from 0."""
    model: bool
    """The world model learns."""
    policy: bool
    """The policy learns."""


@dataclass(frozen=True)
class Rounds:
    """Splits training into rounds, in which each part learns a fixed number of times: this fixes their ratio.

    Args:
        model_updates: updates of the world model per round; a list gives one number per round, and its last number
            holds for all later rounds.
        policy_updates: updates of the policy per round; a list gives one number per round, and its last number holds
            for all later rounds.
        together: train both parts from the first update of a round on, by one summed loss; false trains the model
            first and then the policy.
    """

    model_updates: int | list[int] = 1
    policy_updates: int | list[int] = 1
    together: bool = True

    def __post_init__(self) -> None:
        if [] in (self.model_updates, self.policy_updates):
            raise UserError("rounds need a number of updates, or a list with one for each round: got an empty list")
        for number in range(self._listed() + 1):
            model, policy = self._lengths(number)
            if min(model, policy) < 0 or max(model, policy) < 1:
                raise UserError(f"round {number} needs at least one update of a part: got {model} and {policy}")

    def at(self, update: int) -> Turn:
        """Return the turn of an update; updates count from 0."""
        for number in count():
            model, policy = self._lengths(number)
            length = max(model, policy) if self.together else model + policy
            if number >= self._listed():
                # All later rounds have the same length.
                number, update = number + update // length, update % length
            if update < length:
                return Turn(number, update < model, update < policy if self.together else update >= model)
            update -= length
        raise AssertionError

    def ends(self, updates: int) -> bool:
        """Return whether a round ends after this number of updates, at least 1."""
        return self.at(updates).number != self.at(updates - 1).number

    def _listed(self) -> int:
        return max(len(n) - 1 if isinstance(n, list) else 0 for n in (self.model_updates, self.policy_updates))

    def _lengths(self, number: int) -> tuple[int, int]:
        model, policy = (
            n[min(number, len(n) - 1)] if isinstance(n, list) else n for n in (self.model_updates, self.policy_updates)
        )
        return model, policy
