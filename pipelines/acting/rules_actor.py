"""An actor that plans in the true rules of the played environment."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from datamodules.acting import Actor, Moment
from modules.errors import UserError
from pipelines.acting.actors import RandomActor
from pipelines.acting.exploration import Exploration, Explorer
from pipelines.search.contract import Evaluate
from pipelines.search.dynamics import EmulatorDynamics
from pipelines.search.rules import Gumbel
from pipelines.search.search import Result, Search

BEST = Exploration(temperatures=(0.0,))
"""Exploration that plays the best move of a search."""


class RulesActor(Actor):
    """Searches in the true rules from clones of the games; the actor learns nothing and observes nothing.

    The actor leaves the columns search_policy (N, A) and root_value (N,) float32.

    Args:
        dynamics: rules of the played environment; all N games are searched as one batch.
        search: settings of the search.
        evaluate: evaluation of the states: rollouts, a network, or a mix of both.
        generator: generator of the noise and the draws.
        reuse: keep the subtree of the played move for the next search.
        greedy: play the best move.
        exploration: temperatures of the moves, and the random actions in between. At the temperature 0 the actor draws
            among moves of equal values; if all are equal, it plays at random with the exploration's `persistence`.

    Raises:
        UserError: `reuse` or the search's `bounds` is set under sticky actions, where outcomes are uncertain.
    """

    wants_clone = True

    def __init__(
        self,
        dynamics: EmulatorDynamics,
        search: Search,
        evaluate: Evaluate,
        generator: np.random.Generator,
        reuse: bool = True,
        greedy: bool = False,
        exploration: Exploration = BEST,
    ) -> None:
        if not dynamics.deterministic:
            name = dynamics.protocol.name
            if search.bounds is not None:
                raise UserError(f"bounds prove outcomes, but protocol {name} has sticky actions: set bounds to null")
            if reuse:
                raise UserError(
                    f"a tree cannot be reused under the sticky actions of protocol {name}: set reuse to false"
                )
        self.dynamics = dynamics
        self.search = search
        self.evaluate = evaluate
        self.generator = generator
        self.reuse = reuse
        self.greedy = greedy
        self.exploration = exploration
        self.temperature = 0.0
        self.follow(Fraction(0), 0)
        self.explorer = Explorer(exploration, generator)
        self.wander = RandomActor(dynamics.num_actions, generator, exploration)
        self.found: Result | None = None
        """Result of the last search."""
        self._played = np.zeros(0, np.int64)

    def follow(self, progress: Fraction, real_steps: int) -> None:
        """Set the temperature of this part of the run."""
        if not self.greedy:
            self.temperature = self.exploration.temperature(progress)

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Search from clones of the games, and return the chosen moves (N,) int64 and the results of the search."""
        assert moment.clone is not None
        tree = None
        if self.reuse and self.found is not None:
            tree = self.found.tree.advance(np.where(moment.is_first, -1, self._played))
        found = self.search.run(
            moment.clone,
            self.dynamics,
            self.evaluate,
            legal=moment.legal_actions,
            generator=self.generator,
            tree=tree,
        )
        self.found = found
        self.explorer.forget(moment.is_first)
        chosen = self._choose(found, moment)
        self._played = self.explorer.explore(chosen, self.dynamics.num_actions, moment.legal_actions)
        return self._played, {"search_policy": found.policy, "root_value": found.value}

    def _choose(self, found: Result, moment: Moment) -> np.ndarray:
        """Return actions (N,); draw among exactly equal values, which mostly means that the search found nothing."""
        if isinstance(self.search.rule, Gumbel):
            return found.action
        if self.temperature:
            return found.draw(self.temperature, self.generator)
        best = np.take_along_axis(found.q, found.action[:, None], axis=1)
        alike = found.q == best
        drawn = np.where(alike, self.generator.random(alike.shape), -1.0).argmax(axis=1)
        wandering, _ = self.wander.act(moment)
        return np.where((alike | np.isnan(found.q)).all(axis=1), wandering, drawn)

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states; a resumed run starts new games."""
        return {name: generator.bit_generator.state for name, generator in self._generators().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generators of a `state_dict`."""
        for name, generator in self._generators().items():
            generator.bit_generator.state = state[name]

    def _generators(self) -> dict[str, np.random.Generator]:
        found = {"generator": self.generator, "chance_generator": self.dynamics.generator}
        rollouts = getattr(self.evaluate, "generator", None)  # networks draw nothing
        return found if rollouts is None else found | {"rollouts_generator": rollouts}
