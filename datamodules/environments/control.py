"""Gymnasium's environments with discrete actions and vectors to observe, such as classic control."""

from __future__ import annotations

import importlib
import math
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from datamodules.environments.environment import DeadEnvironmentError, Transition, VectorEnvironment
from datamodules.environments.seeded import SeededVector
from modules.errors import UserError, nearest

MEANINGS: dict[str, tuple[str, ...]] = {
    "CartPole": ("LEFT", "RIGHT"),
    "MountainCar": ("LEFT", "NOOP", "RIGHT"),
    "Acrobot": ("NEGATIVE", "NOOP", "POSITIVE"),
    "LunarLander": ("NOOP", "LEFT", "MAIN", "RIGHT"),
}


def registration(id: str) -> EnvSpec:
    """Return what Gymnasium's registry says of an id, such as CartPole-v1, or package:Name-v0 to import it first.

    Raises:
        UserError: there is no such id, or no such package.
    """
    package, _, name = id.rpartition(":")
    try:
        if package:
            importlib.import_module(package)
        return gymnasium.spec(name)
    except ImportError as error:
        raise UserError(f"{id}: {package} cannot be imported: {_line(error)}") from None
    except gymnasium.error.Error:
        raise UserError(
            f"unknown environment {id!r}: expected an id of Gymnasium's registry, the nearest is "
            f"{nearest(name, gymnasium.registry)}"
        ) from None


def protocol(id: str) -> dict[str, int | str | None]:
    """Return how an environment is cut into episodes: after the steps of its registration, or never."""
    return {"name": "gymnasium", "max_episode_steps": registration(id).max_episode_steps}


class ControlEnvironments(VectorEnvironment):
    """N copies of a Gymnasium environment in float32 vectors (D,), rewards raw.

    They are stepped one after the other in this process, each with a random generator of its own, so that every
    environment is exactly what `gymnasium.make` would play from the same seed. CartPole's own vector form is quicker,
    but draws all its environments from one stream, and what an environment sees would depend on how many there are.

    - An end at the very time limit, which Gymnasium reports as both terminated and truncated, is a termination.
    - Actions are numbered from 0, whatever number the environment's own begin with.
    - Observations of other types, such as float64, are rounded to float32.

    Args:
        id: id of Gymnasium's registry, such as CartPole-v1, or package:Name-v0 to import a package first. The time
            limit is that of its registration.
        num_envs: number of environments, N.
        variant: name of the variant, which is only recorded: training and evaluation play alike.
        seed: seed of all resets; nonnegative.

    Raises:
        UserError: an unknown id, an environment that cannot be made, whose actions are not discrete or whose
            observations are no vectors, or an impossible number.
    """

    def __init__(
        self, id: str, num_envs: int, variant: Literal["training", "evaluation"] = "training", seed: int = 0
    ) -> None:
        if num_envs < 1:
            raise UserError(f"num_envs must be at least 1: got {num_envs}")
        if seed < 0:
            raise UserError(f"seed must not be negative: got {seed}")
        spec = registration(id)
        try:
            vector = gymnasium.make_vec(
                spec,
                num_envs,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
            )
        except Exception as error:  # a foreign constructor may raise any exception
            raise UserError(f"{id} cannot be made: {_line(error)}") from None
        actions, observations = vector.single_action_space, vector.single_observation_space
        if not isinstance(actions, Discrete):
            vector.close()
            raise UserError(f"{id} has the action space {actions}: expected Discrete")
        if not isinstance(observations, Box) or len(observations.shape) != 1:
            vector.close()
            raise UserError(f"{id} has the observation space {observations}: expected vectors, a Box of one dimension")
        self._vector = SeededVector(vector, seed, whole=True, name=id)
        self.num_envs = num_envs
        self.seed = seed
        self.observation_shape = observations.shape
        self.num_actions = int(actions.n)
        self._first_action = int(actions.start)
        meanings = MEANINGS.get(spec.name, ())
        numbers = tuple(str(action) for action in range(self.num_actions))
        self.action_meanings = meanings if len(meanings) == self.num_actions else numbers
        self.description = {
            "environment": "control",
            "id": id,
            "protocol": protocol(id),
            "variant": variant,
            "action_meanings": list(self.action_meanings),
        }

    def reset(self, stream: int = 0) -> np.ndarray:
        """Open N episodes and return their first observations (N, D)."""
        observation = self._vector.reset(stream).astype(np.float32, copy=False)
        self.seeds = self._vector.seeds.copy()
        self._steps = 0
        self._check_finite("observation", observation)
        return observation

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,) int64."""
        assert ((actions >= 0) & (actions < self.num_actions)).all(), f"actions outside [0, {self.num_actions})"
        observation, reward, terminated, truncated = self._vector.step(actions + self._first_action)
        self._steps += 1
        observation, reward = observation.astype(np.float32, copy=False), reward.astype(np.float32)
        self._check_finite("reward", reward)
        self._check_finite("observation", observation)
        return Transition(observation, reward, terminated, truncated & ~terminated)

    def state_dict(self) -> dict[str, Any]:
        """Return every episode's seed and actions."""
        return self._vector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Replay all running episodes, and return their observations."""
        observation = self._vector.load_state_dict(state)
        self._steps = max(len(actions) for actions in state["actions"])
        self.seeds = self._vector.seeds.copy()
        return observation.astype(np.float32, copy=False)

    def close(self) -> None:
        """Free the environments."""
        self._vector.close()

    def _check_finite(self, name: str, value: np.ndarray) -> None:
        """Raise a DeadEnvironmentError where an environment (N, ...) gave anything that cannot be learned from."""
        if math.isfinite(value.sum(dtype=np.float64)):
            return
        env = int(np.flatnonzero(~np.isfinite(value).reshape(self.num_envs, -1).all(axis=1))[0])
        raise DeadEnvironmentError(
            f"the environment {self.description['id']} gave the {name} {value[env].tolist()} at step {self._steps}, in "
            f"copy {env}: expected finite numbers"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
