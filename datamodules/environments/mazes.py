"""The grid mazes of Sutton & Barto (2nd edition), sections 8.2 and 8.3."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules.environments.environment import Transition, VectorEnvironment
from modules.errors import UserError, nearest


class Maze(NamedTuple):
    """A drawing of a maze: S is the start, G is the goal, # is a wall."""

    drawing: str
    """Rows of the maze, separated by spaces."""
    changed: str | None = None
    """Drawing of the maze after the change; None if it never changes."""
    change_at: int | None = None
    """Steps of an environment after which its maze changes."""


MAZES = {
    # Figure 8.2: 14 steps from S to G.
    "dyna": Maze(".......#G ..#....#. S.#....#. ..#...... .....#... ........."),
    # Figure 8.4: from 10 steps to 16.
    "blocking": Maze(
        "........G ......... ......... ########. ......... ...S.....",
        "........G ......... ......... .######## ......... ...S.....",
        change_at=1000,
    ),
    # Figure 8.5: from 16 steps to 10.
    "shortcut": Maze(
        "........G ......... ......... .######## ......... ...S.....",
        "........G ......... ......... .#######. ......... ...S.....",
        change_at=3000,
    ),
}
MOVES = {"UP": (-1, 0), "DOWN": (1, 0), "LEFT": (0, -1), "RIGHT": (0, 1)}


_STATE = ("cell", "elapsed", "clock", "_closed")


class MazeEnvironments(VectorEnvironment):
    """N copies of a maze with separate states, so that no copy learns from another.

    An observation is one number, the index of a state: cell + num_cells * environment, where a cell is row * width +
    column. A move into a wall or over the edge leaves the cell unchanged. Reaching the goal gives reward 1 and ends
    the episode; every other step gives reward 0. Nothing is random.

    Args:
        maze: name of a maze in MAZES.
        num_envs: number of environments, N.
        change_at: steps of an environment after which its maze changes; null takes the number of the figure.
        max_steps: steps after which an episode is truncated; null sets no limit.

    Raises:
        UserError: the maze is unknown, a number is impossible, or `change_at` is given for a maze without a change.
    """

    observation_shape = (1,)
    num_actions = len(MOVES)
    action_meanings = tuple(MOVES)

    def __init__(self, maze: str, num_envs: int, change_at: int | None = None, max_steps: int | None = None) -> None:
        if maze not in MAZES:
            raise UserError(
                f"unknown maze {maze!r}: expected one of {', '.join(MAZES)}, the nearest is {nearest(maze, MAZES)}"
            )
        drawing, changed, usual = MAZES[maze]
        if change_at is not None and changed is None:
            raise UserError(f"the maze {maze} does not change: change_at must be null, got {change_at}")
        for name, number in (("num_envs", num_envs), ("change_at", change_at), ("max_steps", max_steps)):
            if number is not None and number < 1:
                raise UserError(f"{name} must be at least 1: got {number}")
        self.num_envs = num_envs
        self.change_at = usual if change_at is None else change_at
        self.max_steps = max_steps
        self.num_cells = len(drawing.replace(" ", ""))
        self.start, self.goal = (drawing.replace(" ", "").index(mark) for mark in "SG")
        self.seeds = np.zeros(num_envs, np.int64)
        self.moves = np.stack([moves(drawing), moves(changed or drawing)])
        """(2, num_cells, A) int64: the cell after each action, before and after the change."""
        self.clock = np.zeros(num_envs, np.int64)
        """(N,) int64: steps of each environment so far, which determine the change; a reset keeps them."""
        self.description = {
            "environment": "maze",
            "id": maze,
            "protocol": {"change_at": self.change_at, "max_steps": max_steps},
            "action_meanings": list(self.action_meanings),
        }

    def reset(self, stream: int = 0) -> np.ndarray:
        """Move every environment to its start; all streams are the same."""
        self.cell = np.full(self.num_envs, self.start)
        self.elapsed = np.zeros(self.num_envs, np.int64)
        self._closed = np.zeros(self.num_envs, bool)
        return self._observation()

    def step(self, actions: np.ndarray) -> Transition:
        """Move in every environment; a step that only resets does not count as a step."""
        opens = self._closed
        changed = np.zeros(self.num_envs, np.int64) if self.change_at is None else self.clock >= self.change_at
        self.cell = np.where(opens, self.start, self.moves[changed.astype(np.int64), self.cell, actions])
        self.elapsed = np.where(opens, 0, self.elapsed + 1)
        self.clock = self.clock + ~opens
        terminated = self.cell == self.goal
        truncated = np.zeros(self.num_envs, bool)
        if self.max_steps is not None:
            truncated = (self.elapsed >= self.max_steps) & ~terminated
        self._closed = terminated | truncated
        return Transition(self._observation(), terminated.astype(np.float32), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        """Return cells, step counts and ended episodes of all environments."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Restore a `state_dict` and return the observations."""
        for name in _STATE:
            setattr(self, name, state[name].numpy().copy())
        return self._observation()

    def close(self) -> None:
        """Do nothing: mazes hold no resources."""

    def _observation(self) -> np.ndarray:
        return (self.cell + self.num_cells * np.arange(self.num_envs)).astype(np.float32)[:, None]


def moves(drawing: str) -> np.ndarray:
    """Return the cell (num_cells, A) int64 after every action from every cell, walls included.

    An agent on a cell that becomes a wall can still leave it.
    """
    grid = np.array([list(row) for row in drawing.split()])
    height, width = grid.shape
    cell = np.arange(grid.size).reshape(height, width)
    after = np.empty((height, width, len(MOVES)), np.int64)
    for action, (down, right) in enumerate(MOVES.values()):
        row = (np.arange(height) + down).clip(0, height - 1)[:, None]
        column = (np.arange(width) + right).clip(0, width - 1)
        after[..., action] = np.where(grid[row, column] == "#", cell, cell[row, column])
    return after.reshape(grid.size, len(MOVES))
