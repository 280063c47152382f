"""Environments whose state is given by seeds and actions, so that a run can resume within an episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from datamodules.environments.environment import DeadEnvironmentError, Transition
from modules.errors import brief

RESEED_AFTER = 4000
"""Steps of an environment after which its next episode starts from a new seed. Fewer steps would cost more time: ALE
reloads the game for a new seed, which takes as long as many steps. More steps would make the replay longer."""


class SeededVector:
    """Environments under next-step autoreset that log all actions since they were seeded.

    Replaying the log from the same seeds restores the same state, bit for bit, sticky actions and idle frames included.
    A finished episode resets by its own generator. After RESEED_AFTER steps the next episode of an environment starts
    from a new seed, so that the action log stays short.

    Args:
        vector: environments of Gymnasium's interface, in NEXT_STEP mode, with partial resets.
        seed: seed of all episodes.
        whole: whether a partial reset takes a seed for every environment, like Gymnasium's own vectors; false passes
            seeds only for the reset environments, like ALE's.
        name: name of the environment, for error messages.
    """

    def __init__(self, vector: Any, seed: int, whole: bool, name: str) -> None:
        self.vector = vector
        self.seed = seed
        self.whole = whole
        self.name = name
        self.num_envs: int = vector.num_envs

    def reset(self, stream: int = 0) -> np.ndarray:
        """Start the first episode of a stream in every environment, and return the observations."""
        self.stream = stream
        self.renewals = np.zeros(self.num_envs, np.int64)
        self.seeds = self._drawn(0)
        self._over = np.zeros(self.num_envs, bool)
        self._sent: list[np.ndarray] = []
        self._begin = np.zeros(self.num_envs, np.int64)
        return self._reset(np.ones(self.num_envs, bool))

    def step(self, actions: np.ndarray) -> Transition:
        """Step every environment and return the raw results; a finished environment starts its next episode.

        Raises:
            DeadEnvironmentError: the vector raised an error.
        """
        try:
            observation, reward, terminated, truncated, _ = self.vector.step(actions)
        except Exception as error:
            raise DeadEnvironmentError(f"the environment {self.name} died: {brief(error)}") from error
        self._sent.append(actions.astype(np.int16))
        renewed = self._over & (len(self._sent) - self._begin > RESEED_AFTER)
        if renewed.any():
            self.renewals += renewed
            for env in np.flatnonzero(renewed):
                self.seeds[env] = self._drawn(self.renewals[env])[env]
            observation = self._reset(renewed)
            self._begin[renewed] = len(self._sent)
            forgotten = self._begin.min()
            del self._sent[:forgotten]
            self._begin -= forgotten
        self._over = terminated | truncated
        return Transition(observation, reward, terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        """Return every environment's seed and its actions since then."""
        sent = np.array(self._sent, np.int16).reshape(-1, self.num_envs)
        kept = {"seeds": self.seeds, "renewals": self.renewals, "over": self._over}
        return {
            "stream": self.stream,
            "actions": [torch.from_numpy(sent[begin:, env].copy()) for env, begin in enumerate(self._begin)],
            **{name: torch.from_numpy(value.copy()) for name, value in kept.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Replay all actions, and return the resulting observations."""
        self.stream = state["stream"]
        self.seeds, self.renewals, self._over = (state[name].numpy().copy() for name in ("seeds", "renewals", "over"))
        lengths = np.array([len(actions) for actions in state["actions"]])
        longest = int(lengths.max())
        # Environments with fewer actions start later: their reset discards the steps before.
        sent = np.zeros((longest, self.num_envs), np.int16)
        for env, actions in enumerate(state["actions"]):
            sent[longest - len(actions) :, env] = actions.numpy()
        observation = self._reset(np.ones(self.num_envs, bool))
        for t, actions in enumerate(sent.astype(np.int64)):
            if t and (begins := lengths == longest - t).any():
                self._reset(begins)
            observation = self.vector.step(actions)[0]
        if longest and (begins := lengths == 0).any():
            observation = self._reset(begins)
        self._sent, self._begin = list(sent), longest - lengths
        return observation

    def close(self) -> None:
        """Free the environments."""
        self.vector.close()

    def _drawn(self, renewal: int) -> np.ndarray:
        """Return the seeds (N,) of a renewal; no seed depends on the number of environments."""
        entropy = (self.seed, self.stream, int(renewal)) if renewal else (self.seed, self.stream)
        return (np.random.SeedSequence(entropy).generate_state(self.num_envs) >> 1).astype(np.int64)

    def _reset(self, envs: np.ndarray) -> np.ndarray:
        """Reset the environments in a mask by their seeds, and return every environment's present observation."""
        seeds = self.seeds.tolist() if self.whole else self.seeds if envs.all() else self.seeds[envs]
        options = None if envs.all() else {"reset_mask": envs}
        try:
            return self.vector.reset(seed=seeds, options=options)[0]
        except Exception as error:
            raise DeadEnvironmentError(f"the environment {self.name} died in its reset: {brief(error)}") from error
