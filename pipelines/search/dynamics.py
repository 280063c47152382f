"""True rules to plan in: the emulator of an Atari game, and board games."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyspiel
import torch

from datamodules.environments.emulator import AtariEmulators
from modules.errors import UserError
from modules.world_model import Step
from pipelines.search.contract import Evaluation
from pipelines.spelling import nearest


class EmulatorDynamics:
    """What actions do in the emulator itself; states are arrays (B,) of `Clone` objects.

    Under sticky actions an outcome is drawn once, when an edge is first tried, and the plan is made for that draw.

    Args:
        environment: whose games are planned for; it is not disturbed.
        life_loss_ends: a lost life is planned for as if it ended the game.
        exact: refuse a protocol with chance in it.
        look: keep the screens of states that are reached, for evaluations that see.
        generator: of sticky actions.

    Raises:
        UserError: `exact` of a sticky protocol.
    """

    def __init__(
        self,
        environment: AtariEmulators,
        life_loss_ends: bool = False,
        exact: bool = False,
        look: bool = False,
        generator: np.random.Generator | None = None,
    ) -> None:
        protocol = environment.protocol
        self.deterministic = not protocol.repeat_action_probability
        if exact and not self.deterministic:
            raise UserError(
                f"protocol {protocol.name} repeats actions with probability {protocol.repeat_action_probability:g}: "
                "a search in it is not exact, choose a protocol without sticky actions, such as atari100k"
            )
        self.num_actions = environment.num_actions
        self.life_loss_ends = life_loss_ends
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
                lives = emulator.ale.lives()
                reward[row] = emulator.act(action, self.generator, self.look)
                emulator.closed = self._ends(lives)
            continuation[row] = not emulator.closed
            after[row] = emulator.clone(self.look)
        return Step(after, reward, continuation)  # type: ignore[arg-type]

    def play_out(
        self, states: np.ndarray, depth: int | None, discount: float, actions: RandomActions
    ) -> np.ndarray:
        """Return what random play earns (B,) float32, discounted, without a clone or a picture on the way."""
        returns = np.zeros(len(states), np.float32)
        emulator = self._emulator
        for row, state in enumerate(states):
            if state.closed:
                continue
            emulator.restore(state)
            lives, earned, weight, steps = emulator.ale.lives(), 0.0, 1.0, 0
            while steps != depth:
                action, held = actions.draw(self.num_actions)
                for _ in range(held if depth is None else min(held, depth - steps)):
                    earned += weight * emulator.act(action, self.generator, look=False)
                    weight *= discount
                    steps += 1
                    if self._ends(lives):
                        break
                else:
                    continue
                break
            returns[row] = earned
        return returns

    def _ends(self, lives: int) -> bool:
        return self._emulator.over or (self.life_loss_ends and self._emulator.ale.lives() < lives)
