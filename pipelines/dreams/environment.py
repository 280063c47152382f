"""Gymnasium environments, vector and single, of any trained world model.

Importing this module registers both: `gymnasium.make_vec("dreamcade/Dream-v0", checkpoint=...)`. The id
"pipelines.dreams.environment:dreamcade/Dream-v0" imports the module as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from modules.batch import Batch, push
from modules.errors import UserError, nearest
from modules.imagination import evaluating
from modules.learner import Learner
from modules.world_model import WorldModel
from pipelines.callbacks.dreaming.dream_starts import unpack
from pipelines.display.films import enlarge
from pipelines.runs import checkpoints

MAX_EPISODE_STEPS = 1000
"""Default time limit, because dreams drift away from the training data."""
METADATA = {"render_modes": ["rgb_array"], "render_fps": 15}


class DreamVectorEnv(VectorEnv):
    """Vector environment of N dreams of one world model, which are stepped as one batch.

    An episode starts like a real one: the model observes the first rows of a real episode and dreams on from there.
    Observations are the ones of the training run's policies: (stack * C, H, W) uint8 frames or (D,) float32 vectors.
    Rewards are the model's expected rewards. An episode terminates by the continuation that the model predicts. An
    episode is truncated after `max_episode_steps` or at the model's longest horizon.

    Environments with the same seed dream the same, independent of other random numbers. Starts and terminations come
    from `np_random`; the model's noise comes from a stream of the environment.

    Args:
        model: a world model, or an agent with a world model; the model may keep learning.
        num_envs: number N of dreams.
        checkpoint: checkpoint of a run, instead of a model.
        starts: windows (M, T) of episode starts to dream from; null takes those of the checkpoint.
        game: game that the checkpoint must be trained on, in any usual spelling; null accepts any game.
        max_episode_steps: number of steps after which an episode is truncated; null sets no limit.
        sample_termination: if true, end an episode with the probability that the model predicts; if false, end it when
            that probability is above one half.
        autoreset_mode: when the next episode starts after the end of one; see Gymnasium's AutoresetMode.
        render_mode: render mode, "rgb_array" or null.
        scale: factor by which rendered frames are enlarged.
        device: device for a checkpoint's model; a given model stays on its device.

    Raises:
        UserError: neither or both of model and checkpoint are given; the checkpoint is unusable or of another game; the
            model cannot dream; there are no starts; or an argument is out of range.
    """

    metadata: dict[str, Any] = METADATA

    def __init__(
        self,
        model: Learner | None = None,
        num_envs: int = 1,
        *,
        checkpoint: str | Path | None = None,
        starts: Batch | None = None,
        game: str | None = None,
        max_episode_steps: int | None = MAX_EPISODE_STEPS,
        sample_termination: bool = True,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        scale: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(num_envs, scale, 1 if max_episode_steps is None else max_episode_steps) < 1:
            raise UserError(
                "a dream environment needs num_envs, scale and max_episode_steps of at least 1: "
                f"got {num_envs}, {scale} and {max_episode_steps}"
            )
        self.autoreset_mode = _mode(autoreset_mode)
        self.model, self.starts = _dreamer(model, checkpoint, starts, game, device)
        self.sample_termination = sample_termination
        self.scale = scale
        limits = [limit for limit in (max_episode_steps, self.model.max_horizon) if limit is not None]
        self.max_episode_steps = min(limits, default=None)
        self.num_envs = num_envs
        assert self.model.spec is not None
        assert self.starts.observation is not None
        self.channels = self.model.spec.observation_shape[0]
        self.frames = self.starts.observation.dtype == torch.uint8
        low, high, dtype = (0, 255, np.uint8) if self.frames else (-np.inf, np.inf, np.float32)
        self.single_observation_space = Box(low, high, tuple(self.starts.observation.shape[2:]), dtype)
        self.single_action_space = Discrete(self.model.spec.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        if render_mode is not None and (not self.frames or render_mode != "rgb_array"):
            modes = "rgb_array or null" if self.frames else "null: vectors have no picture"
            raise UserError(f"unknown render_mode {render_mode!r}: expected {modes}")
        self.render_mode = render_mode
        self._state: Tensor | None = None
        self._observation = np.zeros((num_envs, *self.starts.observation.shape[2:]), dtype)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._closed = np.zeros(num_envs, bool)
        self._generators = [torch.default_generator]
        if self.model.device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[self.model.device.index])
        self._noise: list[Tensor] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes in all N environments, or only where `options["reset_mask"]`, (N,) bool, is True.

        One seed is for all environments together.
        """
        where = np.ones(self.num_envs, bool)
        if options and "reset_mask" in options:
            where = self._mask(options["reset_mask"])
        super().reset(seed=seed)
        if seed is not None or not self._noise:
            number = int(self.np_random.integers(2**63))
            self._noise = [torch.Generator(g.device).manual_seed(number).get_state() for g in self._generators]
        self._open(where)
        return self._observation.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream one step in every environment by actions (N,)."""
        actions = np.asarray(actions)
        if actions not in self.action_space:
            last = self.model.spec.num_actions - 1  # type: ignore[union-attr]
            raise UserError(f"actions must be {self.num_envs} whole numbers from 0 to {last}: got {actions}")
        opens = self._closed  # these environments reset now under next-step autoreset
        if self._state is None or (self.autoreset_mode == AutoresetMode.DISABLED and opens.any()):
            raise ResetNeeded("reset first: no episode was opened yet, or one has ended")
        with self._dreaming():
            action = torch.from_numpy(actions.astype(np.int64)).to(self.model.device)
            self._state, expected, goes_on = self.model.step(self._state, action)
            newest = self.model.decode(self._state)
        self._append(newest)
        self._elapsed += 1
        reward, continuation = (values.double().cpu().numpy() for values in (expected, goes_on))
        ends = self.np_random.random(self.num_envs) >= continuation if self.sample_termination else continuation < 0.5
        terminated = ends & ~opens
        truncated = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncated = (self._elapsed >= self.max_episode_steps) & ~opens
        self._closed = terminated | truncated
        reward = np.where(opens, 0.0, reward)
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            opens = self._closed
            for i in opens.nonzero()[0].tolist():
                infos = self._add_info(infos, {"final_obs": self._observation[i].copy(), "final_info": {}}, i)
        if opens.any():
            self._open(opens.copy())
        return self._observation.copy(), reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the newest frame of every dream, (H * scale, W * scale, 3) uint8."""
        if self.render_mode is None:
            return None
        newest = self._observation[:, -self.channels :].transpose(0, 2, 3, 1)
        return tuple(enlarge(np.broadcast_to(newest, (*newest.shape[:3], 3)), self.scale))

    def _open(self, where: np.ndarray) -> None:
        """Start new episodes where the mask (N,) is True, from the last row of a drawn start."""
        chosen = self.np_random.integers(len(self.starts.action), size=int(where.sum()))
        windows = self.starts[torch.from_numpy(chosen)]
        assert windows.observation is not None
        with self._dreaming():
            states = self.model.encode(windows.to(self.model.device))
        rows = torch.arange(len(chosen)), _last_row(windows)
        state = states.new_zeros(self.num_envs, *states.shape[2:]) if self._state is None else self._state.clone()
        state[torch.from_numpy(where)] = states[rows]
        self._state = state
        self._observation[where] = windows.observation[rows].numpy()
        self._elapsed[where] = 0
        self._closed[where] = False

    def _append(self, newest: Tensor) -> None:
        """Drop the oldest frame of every stack, or the whole vector, and append the model's decoded observation."""
        if self.frames:
            newest = (newest.clamp(0, 1) * 255).round().byte()
        stack = self._observation.shape[1] // self.channels
        self._observation = push(torch.from_numpy(self._observation), newest.cpu(), None, stack).numpy()

    def _mask(self, mask: Any) -> np.ndarray:
        if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,) and mask.any()):
            raise UserError(f"reset_mask must be a bool array ({self.num_envs},) that is true somewhere: got {mask!r}")
        if self._state is None:
            raise ResetNeeded("the first reset opens every environment: leave out reset_mask")
        return mask

    @contextmanager
    def _dreaming(self) -> Iterator[None]:
        """Run the model in evaluation mode on this environment's noise, and restore the global random generators."""
        before = [generator.get_state() for generator in self._generators]
        for generator, state in zip(self._generators, self._noise, strict=True):
            generator.set_state(state)
        try:
            with torch.no_grad(), evaluating(self.model):
                yield
        finally:
            self._noise = [generator.get_state() for generator in self._generators]
            for generator, state in zip(self._generators, before, strict=True):
                generator.set_state(state)


class DreamEnv(gymnasium.Env):
    """Environment of one dream: a DreamVectorEnv with N = 1 and the same observations, rewards and ends.

    The only time limit is the model's longest horizon. `gymnasium.make` adds its argument `max_episode_steps`, or the
    registered limit.

    Args:
        model: a world model, or an agent with a world model; the model may keep learning.
        render_mode: render mode, "rgb_array" or null.
        arguments: arguments of DreamVectorEnv: checkpoint, starts, game, sample_termination, scale, device.
    """

    metadata: dict[str, Any] = METADATA

    def __init__(self, model: Learner | None = None, render_mode: str | None = None, **arguments: Any) -> None:
        self.dreams = DreamVectorEnv(
            model,
            1,
            max_episode_steps=None,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
            **arguments,
        )
        self.observation_space = self.dreams.single_observation_space
        self.action_space = self.dreams.single_action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode."""
        super().reset(seed=seed)
        observation, info = self.dreams.reset(seed=seed)
        return observation[0], info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Dream one step by an action."""
        observation, reward, terminated, truncated, info = self.dreams.step(np.asarray([action]))
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the newest frame, (H * scale, W * scale, 3) uint8."""
        frames = self.dreams.render()
        return None if frames is None else frames[0]


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    names = [known.value for known in AutoresetMode]
    if isinstance(mode, str) and mode not in names:
        raise UserError(
            f"autoreset_mode is one of {', '.join(names)}, not {mode}: the nearest is {nearest(mode, names)}"
        )
    return AutoresetMode(mode)


def _dreamer(
    module: Learner | None,
    checkpoint: str | Path | None,
    starts: Batch | None,
    game: str | None,
    device: torch.device | str,
) -> tuple[WorldModel, Batch]:
    """Return the world model, and the windows to start from, on the CPU."""
    if (module is None) == (checkpoint is None):
        raise UserError("a dream environment needs either a model or a checkpoint")
    kept: dict[str, Any] = {}
    if module is None:
        assert checkpoint is not None
        module, kept = checkpoints.load(checkpoint, device)
        checkpoints.check_world(checkpoint, kept, game)
    model: WorldModel = module.world_model
    model.require("step", "reward", "decode", by="a dream environment")
    assert model.spec is not None, "the model was not built yet"
    if starts is None:
        if "dream_starts" not in kept:
            source = "a model without a checkpoint" if checkpoint is None else str(checkpoint)
            raise UserError(f"{source} has no dream starts: give starts")
        starts = unpack(kept["dream_starts"], model.spec)
    first, *rest = model.spec.observation_shape
    expected, found = (model.spec.frame_stack * first, *rest), starts.observation.shape[2:]  # type: ignore[union-attr]
    if found != expected:
        raise UserError(f"starts have observations of shape {tuple(found)}, the model's are {expected}")
    return model, starts.to("cpu")


def _last_row(windows: Batch) -> Tensor:
    """Return the index (B,) int64 of the last row of each window's first episode that does not close the episode."""
    goes_on = windows.has_successor() & ~windows.is_last[:, 1:]
    return goes_on.cumprod(dim=1).sum(dim=1)


gymnasium.register(
    id="dreamcade/Dream-v0",
    entry_point="pipelines.dreams.environment:DreamEnv",
    vector_entry_point="pipelines.dreams.environment:DreamVectorEnv",
    max_episode_steps=MAX_EPISODE_STEPS,
)
