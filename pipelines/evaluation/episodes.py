"""Playing real episodes to their end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datamodules.collector import Actor
from datamodules.environments.environment import VectorEnvironment
from pipelines.evaluation.results import Episode


def play(
    environment: VectorEnvironment,
    actor: Actor,
    max_steps: int | None = None,
    advance: Callable[[int], None] = lambda finished: None,
) -> list[Episode]:
    """Play one episode in every environment: short ones are not counted more often than long ones.

    Args:
        environment: of the evaluation variant; each of its N environments has a seed of its own.
        actor: who plays; all episodes open at once.
        max_steps: agent steps after which an episode is given up as unfinished.
        advance: told how many episodes ended, whenever some did.
    """
    num_envs = environment.num_envs
    observation = environment.reset()
    is_first = np.ones(num_envs, bool)
    playing = np.ones(num_envs, bool)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    closed = np.zeros(num_envs, bool)
    while playing.any() and (max_steps is None or lengths.max() < max_steps):
        actions, _ = actor.act(observation, is_first)
        after = environment.step(actions)
        returns += after.reward * playing
        lengths += playing
        observation, is_first = after.observation, closed
        closed = after.terminated | after.truncated
        advance(int((playing & closed).sum()))
        playing &= ~closed
    return [
        {"seed": int(seed), "return": float(total), "length": int(length), "finished": not unfinished}
        for seed, total, length, unfinished in zip(environment.seeds, returns, lengths, playing, strict=True)
    ]
