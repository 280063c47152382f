"""Who plans in the true rules of the world that is played."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.acting import Actor, Moment
from modules.errors import UserError
from pipelines.acting.actors import RandomActor
from pipelines.search.contract import Evaluate
from pipelines.search.dynamics import EmulatorDynamics
from pipelines.search.rules import Gumbel
from pipelines.search.search import Result, Search


class RulesActor(Actor):
    """A search in the true rules, from wherever the games are: nothing is learned, and nothing is observed.

    It leaves the columns search_policy (N, A) and root_value (N,) float32.

    Args:
        dynamics: rules of the environment that is played; all N games are searched as one batch.
        search: how it plans.
        evaluate: judges its states: rollouts, a network, or a mix of both.
        generator: generator of the noise and the draws.
        reuse: keep what was found under the moves that were made.
        temperature: moves are drawn by visits^(1 / temperature); 0 plays the best, and draws where some are alike.
            A Gumbel search draws by its own noise instead.
        persistence: mu of the random play, as RandomActor's, where all moves are alike: nothing was found.

    Raises:
        UserError: for `reuse` or the search's `bounds` under sticky actions, where what follows is not known for sure.
    """

    wants_clone = True

    def __init__(
        self,
        dynamics: EmulatorDynamics,
        search: Search,
        evaluate: Evaluate,
        generator: np.random.Generator,
        reuse: bool = True,
        temperature: float = 0.0,
        persistence: float | None = None,
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
        self.temperature = temperature
        self.wander = RandomActor(dynamics.num_actions, generator, persistence)
        self.found: Result | None = None
        """What the last search found."""
        self._played = np.zeros(0, np.int64)

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Search from the present moments of the true world, and play what that found (N,) int64."""
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
        self._played = self._choose(found, moment)
        return self._played, {"search_policy": found.policy, "root_value": found.value}

    def _choose(self, found: Result, moment: Moment) -> np.ndarray:
        """Return actions (N,), drawn where values are exactly alike: mostly, nothing was found."""
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
        """Return the generators' states: a run that is taken up again opens new games."""
        return {
            "generator": self.generator.bit_generator.state,
            "chance": self.dynamics.generator.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing where `state_dict` was taken."""
        self.generator.bit_generator.state = state["generator"]
        self.dynamics.generator.bit_generator.state = state["chance"]
