"""True rules to plan in: the emulator of an Atari game, and board games."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from datamodules.environments.boards import BoardRules
from datamodules.environments.emulator import AtariEmulators
from modules.errors import UserError
from modules.world_model import Step


class EmulatorDynamics:
    """What actions do in the emulator itself; states are arrays (B,) of `Clone` objects.

    Under sticky actions an outcome is drawn once, when an edge is first tried, and the plan is made for that draw.

    Args:
        environment: whose games are planned for; it is not disturbed.
        life_loss_ends: a lost life is planned for as if it ended the game.
        life_loss_reward: what a lost life is planned for to earn: the score does not know of it.
        exact: refuse a protocol with chance in it.
        look: keep the screens of states that are reached, for evaluations that see.
        persistence: mu of random play that holds its actions, as RandomActor's; null draws anew at every step.
        generator: generator of sticky actions.

    Raises:
        UserError: `exact` of a sticky protocol.
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
        if persistence is not None and persistence <= 1:
            raise UserError(f"persistence of random play must be more than 1: got {persistence}")
        self.num_actions = environment.num_actions
        self.persistence = persistence
        self.life_loss_ends = life_loss_ends
        self.life_loss_reward = life_loss_reward
        self.look = look
        self.generator = np.random.default_rng(0) if generator is None else generator
        self._emulator = environment.emulator()

    def step(self, states: np.ndarray, actions: Any) -> Step:
        """Execute actions (B,) for `frame_skip` frames each; continuation 0 where that ends the game."""
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
        """Return what random play earns (B,) float32, discounted, without a clone or a picture on the way.

        Args:
            states: (B,) clones, of which those that are over earn nothing.
            depth: steps after which play is cut; null plays to the end.
            discount: from step to step.
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
        """Return what an action earns, and whether it ends what is planned for."""
        emulator = self._emulator
        lives = emulator.ale.lives()
        reward = emulator.act(action, self.generator, look)
        lost = emulator.ale.lives() < lives
        return reward + self.life_loss_reward * lost, emulator.over or (self.life_loss_ends and lost)


def random_actions(num_actions: int, generator: np.random.Generator, persistence: float | None = None) -> Iterator[int]:
    """Yield random actions without end, each held for n steps that are drawn with probability ~ n^-persistence."""
    while True:
        drawn = generator.integers(num_actions, size=16)
        if persistence is not None:
            drawn = drawn.repeat(np.minimum(generator.zipf(persistence, size=16), 1000))
        yield from drawn.tolist()


class GameDynamics(BoardRules):
    """What moves do in a board game for two; states are arrays (B,) of open_spiel's state objects.

    Rewards are for the mover, whichever of open_spiel's player ids that is: in its chess White is player 1.
    """

    deterministic = True

    def step(self, states: np.ndarray, actions: Any) -> Step:
        """Make moves (B,); continuation 0 where that ends the game."""
        after, reward, ended = self.apply(states, actions)
        return Step(after, torch.from_numpy(reward), torch.from_numpy(~ended).float())  # type: ignore[arg-type]
