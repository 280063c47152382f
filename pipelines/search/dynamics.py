"""Exact dynamics for planning: the emulator of an Atari game, and board games."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import torch

from datamodules.environments.boards import BoardRules
from datamodules.environments.emulator import AtariEmulators, Emulator
from modules.errors import UserError
from modules.world_model import Step
from pipelines.search.random_actions import check_persistence, random_actions


class EmulatorDynamics:
    """Dynamics of the Atari emulator; states are arrays (B,) of `Clone` objects.

    Under sticky actions the search samples an outcome once, when it first tries an edge, and plans for that sample.

    Args:
        environment: environment whose games are planned for; planning does not change its state.
        life_loss_ends: plan as if a lost life ended the game.
        life_loss_reward: reward that the planner adds for a lost life; the game's score stays without it.
        exact: refuse a protocol with random outcomes.
        look: keep the screens of the states that the search reaches, for evaluators that take pictures.
        persistence: exponent mu of the zeta distribution of the steps for which random play holds an action; null draws
            an action at every step.
        generator: generator of sticky actions.

    Raises:
        UserError: `exact` is set for a protocol with sticky actions.
    """

    def __init__(
        self,
        environment: AtariEmulators,
        life_loss_ends: bool = False,
        life_loss_reward: float = 0.0,
        exact: bool = False,
        look: bool = False,
        persistence: float | None = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.protocol = protocol = environment.protocol
        self.deterministic = not protocol.repeat_action_probability
        if exact and not self.deterministic:
            raise UserError(
                f"protocol {protocol.name} repeats actions with probability {protocol.repeat_action_probability:g}: "
                "a search in it is not exact, choose a protocol without sticky actions, such as atari100k"
            )
        check_persistence(persistence)
        self.num_actions = environment.num_actions
        self.persistence = persistence
        self.life_loss_ends = life_loss_ends
        self.life_loss_reward = life_loss_reward
        self.look = look
        self.generator = np.random.default_rng(0) if generator is None else generator
        self._made_of = environment.made_of
        self._emulator = Emulator(**self._made_of)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy in another process, without the emulator, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_emulator"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of a copy, and make an emulator: it holds no state between calls."""
        self.__dict__.update(state)
        self._emulator = Emulator(**self._made_of)

    def step(self, states: np.ndarray, actions: Any) -> Step:
        """Execute actions (B,) for `frame_skip` frames each; the continuation is 0 where the game ends."""
        after = np.empty(len(states), object)
        reward, continuation = torch.zeros(len(states)), torch.ones(len(states))
        emulator = self._emulator
        for row, (state, action) in enumerate(zip(states, actions.tolist(), strict=True)):
            emulator.restore(state)
            if not state.closed:
                reward[row], emulator.closed = self._act(action, self.look)
            continuation[row] = not emulator.closed
            after[row] = emulator.clone(self.look)
        return Step(after, reward, continuation)  # type: ignore[arg-type]

    def play_out(
        self, states: np.ndarray, depth: int | None, discount: float, generator: np.random.Generator
    ) -> np.ndarray:
        """Return the discounted returns (B,) float32 of random play, which makes no clones or pictures on the way.

        Args:
            states: array (B,) of clones; the return of a finished game is 0.
            depth: number of steps after which play is cut; null plays to the end.
            discount: discount per step.
            generator: generator of the actions.
        """
        returns = np.zeros(len(states), np.float32)
        emulator = self._emulator
        for row, state in enumerate(states):
            if state.closed:
                continue
            emulator.restore(state)
            weight = 1.0
            for action in islice(random_actions(self.num_actions, generator, self.persistence), depth):
                reward, ended = self._act(action, look=False)
                returns[row] += weight * reward
                if ended:
                    break
                weight *= discount
        return returns

    def _act(self, action: int, look: bool) -> tuple[float, bool]:
        """Return the reward of an action, and whether it ends the planned episode."""
        emulator = self._emulator
        lives = emulator.ale.lives()
        reward = emulator.act(action, self.generator, look)
        lost = emulator.ale.lives() < lives
        return reward + self.life_loss_reward * lost, emulator.over or (self.life_loss_ends and lost)


class GameDynamics(BoardRules):
    """Dynamics of a board game for two; states are arrays (B,) of open_spiel's state objects.

    Rewards are for the mover, independent of open_spiel's player ids: in its chess White is player 1.
    """

    deterministic = True

    def step(self, states: np.ndarray, actions: Any) -> Step:
        """Make moves (B,); the continuation is 0 where the game ends."""
        after, reward, ended = self.apply(states, actions)
        return Step(after, torch.from_numpy(reward), torch.from_numpy(~ended).float())  # type: ignore[arg-type]
