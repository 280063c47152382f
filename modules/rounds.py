"""Whose turn it is to learn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from modules.errors import UserError


class Turn(NamedTuple):
    """An update's place in the rounds."""

    number: int
    """Of the round, from 0."""
    model: bool
    """The world model learns."""
    policy: bool
    """The policy learns."""


@dataclass(frozen=True)
class Rounds:
    """Training proceeds in rounds of updates, in which each part learns a fixed number of times: their ratio is pinned.

    Args:
        model_updates: updates of the world model in a round; a list gives each round its own number, the last one holds
            for all later rounds.
        policy_updates: updates of the policy in a round; a list as for the world model.
        together: let both learn from a round's first update on, in one summed loss; false trains the model first and
            then the policy.
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
        """Return the turn of an update, counted from 0."""
        for number in count():
            model, policy = self._lengths(number)
            length = max(model, policy) if self.together else model + policy
            if number >= self._listed():
                # All rounds from here on are alike.
                number, update = number + update // length, update % length
            if update < length:
                return Turn(number, update < model, update < policy if self.together else update >= model)
            update -= length
        raise AssertionError

    def ends(self, updates: int) -> bool:
        """Return whether a round is over after so many updates, at least 1."""
        return self.at(updates).number != self.at(updates - 1).number

    def _listed(self) -> int:
        return max(len(n) - 1 if isinstance(n, list) else 0 for n in (self.model_updates, self.policy_updates))

    def _lengths(self, number: int) -> tuple[int, int]:
        model, policy = (
            n[min(number, len(n) - 1)] if isinstance(n, list) else n for n in (self.model_updates, self.policy_updates)
        )
        return model, policy
