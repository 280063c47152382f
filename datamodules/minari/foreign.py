"""Conversion of Minari datasets from other sources into rows of a replay store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, Space
from minari import EpisodeData, MinariDataset

from datamodules.environments.atari import PROTOCOLS, AtariEnvironments, AtariProtocol, canonical_game, check_size
from datamodules.environments.emulator import average_areas
from datamodules.minari.export import Span, marks
from modules.errors import UserError, check_range

LUMINANCE = np.array([0.2989, 0.5870, 0.1140], np.float32)
"""Weights of red, green and blue in ALE's grey screens."""
CHUNK = 256
"""Number of frames that are converted at a time."""


@dataclass(frozen=True)
class Foreign:
    """Settings for the conversion of a dataset from another source.

    Args:
        size: height and width of the converted frames.
        color: color of the converted frames, grey for one channel or rgb for three.
        num_envs: number of environments of the store, over which the episodes are spread evenly.
        num_validation_envs: number of validation environments, the last of the store.
        world: name of the Atari game or Gymnasium id; only for a dataset that does not name it.
        protocol: protocol of the Atari game; only for a dataset that does not record it.
    """

    size: tuple[int, int] = (84, 84)
    color: Literal["grey", "rgb"] = "grey"
    num_envs: int = 9
    num_validation_envs: int = 1
    world: str | None = None
    protocol: Literal["atari100k", "machado2018"] | None = None


class ForeignEpisodes:
    """Rows of a dataset from another source.

    All episodes, one after the other, are cut into environments of equal length. Fewer rows than environments are left
    over at the end. An episode that is cut continues at the start of the next environment. Infos are dropped.

    Args:
        dataset: dataset with discrete actions, whose observations are uint8 pictures or vectors.
        options: settings of the conversion.

    Raises:
        UserError: the dataset has other spaces, is too short, or does not name its environment.
    """

    def __init__(self, dataset: MinariDataset, options: Foreign) -> None:
        self._id, self._options = dataset.id, options
        actions, observations = dataset.action_space, dataset.observation_space
        if not isinstance(actions, Discrete):
            raise UserError(f"{dataset.id} has the action space {_line(actions)}: expected Discrete")
        self._first_action, self._num_actions = int(actions.start), int(actions.n)
        check_range("num_envs", options.num_envs, 1)
        check_size(options.size)
        channels = _channels(dataset.id, observations)
        spec = dataset.env_spec
        if options.world is not None and spec is not None:
            raise UserError(f"{dataset.id} names its environment, {spec.id}: leave --world out")
        if options.world is None and spec is None:
            raise UserError(f"{dataset.id} does not name its environment: give the game or Gymnasium id by --world")
        if channels is None:
            shape, description = observations.shape, self._control(spec)
        else:
            if options.color == "rgb" and channels == 1:
                raise UserError(f"{dataset.id} has grey frames, which cannot become rgb: leave --color out")
            shape = (1 if options.color == "grey" else 3, *options.size)
            description = self._atari(spec)
        self.layout: dict[str, Any] = {
            "observation_shape": shape,
            "observation_dtype": "float32" if channels is None else "uint8",
            "num_actions": self._num_actions,
            "num_validation_envs": options.num_validation_envs,
            "extras": {},
            "description": {**description, "minari": dataset.id},
        }
        """Arguments of `ReplayStore.create`, except capacity and number of environments."""
        self.envs = spread([int(mark["total_steps"]) + 1 for mark in marks(dataset)], options.num_envs)
        """Rows of every environment, in order."""
        if not self.envs[0]:
            raise UserError(f"{dataset.id} has too few steps for {options.num_envs} environments")

    def columns(self, episode: EpisodeData, span: Span) -> list[np.ndarray]:
        """Return observation, action, reward, terminated, is_first and is_last of the rows."""
        rows, last = slice(span.start, span.stop), len(episode.rewards)
        if len(episode.observations) != last + 1:
            raise UserError(
                f"episode {span.episode} of {self._id} has {len(episode.observations)} observations, "
                f"expected one more than its {last} steps"
            )
        row = np.arange(last + 1)[rows]
        return [
            self._observations(np.asarray(episode.observations)[rows]),
            np.append(episode.actions - self._first_action, 0)[rows],
            np.append(episode.rewards, 0)[rows],
            np.append(episode.terminations, False)[rows],
            row == 0,
            row == last,
        ]

    def _observations(self, observations: np.ndarray) -> np.ndarray:
        if observations.ndim == 2:
            return observations.astype(np.float32)
        channels, height, width = self.layout["observation_shape"]
        converted = np.empty((len(observations), channels, height, width), np.uint8)
        for start in range(0, len(observations), CHUNK):
            frames = observations[start : start + CHUNK]
            if frames.ndim == 3:
                frames = frames[..., None]
            elif frames.shape[-1] not in (1, 3):
                frames = frames.transpose(0, 2, 3, 1)
            if channels == 1 and frames.shape[-1] == 3:
                frames = np.rint(frames @ LUMINANCE).astype(np.uint8)[..., None]
            converted[start : start + CHUNK] = average_areas(frames, height, width).transpose(0, 3, 1, 2)
        return converted

    def _control(self, spec: EnvSpec | None) -> dict[str, Any]:
        return {
            "environment": "control",
            "id": spec.id if spec else self._options.world,
            "protocol": {"name": "gymnasium", "max_episode_steps": spec.max_episode_steps if spec else None},
            "variant": "training",
            "action_meanings": [str(action) for action in range(self._num_actions)],
        }

    def _atari(self, spec: EnvSpec | None) -> dict[str, Any]:
        options = self._options
        game = canonical_game(str(spec.kwargs.get("game", spec.id) if spec else self._options.world))
        if spec is None and options.protocol is None:
            raise UserError(
                f"{self._id} does not record the protocol of {game}: give --protocol {' or '.join(PROTOCOLS)}"
            )
        if spec is not None and options.protocol is not None:
            raise UserError(f"{self._id} records the protocol of {game}: leave --protocol out")
        protocol = _protocol(self._id, spec) if spec else PROTOCOLS[str(self._options.protocol)]
        world = AtariEnvironments(game, 1, protocol)
        meanings = world.action_meanings
        world.close()
        if len(meanings) != self._num_actions:
            raise UserError(
                f"{self._id} has {self._num_actions} actions, but {game} has {len(meanings)} under this protocol"
            )
        return {
            "environment": "atari",
            "game": game,
            "protocol": dataclasses.asdict(protocol),
            "variant": "training",
            "size": list(self._options.size),
            "color": self._options.color,
            "action_meanings": list(meanings),
            "terminal_frame_repeats": True,  # the dataset does not say; True is the safe value
        }


def spread(lengths: Iterable[int], envs: int) -> list[list[Span]]:
    """Cut episodes of given lengths in rows, one after the other, into environments of equal length."""
    lengths = list(lengths)
    room = sum(lengths) // envs
    spread: list[list[Span]] = [[]]
    left = room
    for episode, length in enumerate(lengths):
        start = 0
        while start < length and room:
            if left == 0:
                if len(spread) == envs:
                    return spread
                spread.append([])
                left = room
            stop = min(length, start + left)
            spread[-1].append(Span(episode, start, stop))
            left -= stop - start
            start = stop
    return spread


def _channels(id: str, space: Space) -> int | None:
    """Return the number of channels of frames; None for vectors."""
    if isinstance(space, Box) and len(space.shape) == 1:
        return None
    if isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        if len(space.shape) == 2:
            return 1
        for channels in (space.shape[-1], space.shape[0]):
            if channels in (1, 3):
                return channels
    raise UserError(
        f"{id} has the observation space {_line(space)}: expected vectors, or single uint8 frames, grey or RGB"
    )


def _protocol(id: str, spec: EnvSpec) -> AtariProtocol:
    """Return the protocol of a Gymnasium ALE environment, from its arguments and those of AtariPreprocessing."""
    skip = spec.kwargs.get("frameskip", 4)
    if not isinstance(skip, int):
        raise UserError(f"{id} skips a random number of frames, {skip}: expected a fixed number")
    wrapped = next((w.kwargs or {} for w in spec.additional_wrappers if w.name == "AtariPreprocessing"), None)
    limit = int(spec.kwargs.get("max_num_frames_per_episode") or 108_000)
    preprocessing = {"frame_skip": 1, "noop_max": 0} if wrapped is None else {"frame_skip": 4, "noop_max": 30} | wrapped
    return AtariProtocol(
        name="minari",
        frame_skip=skip * int(preprocessing["frame_skip"]),
        maxpool=wrapped is not None,
        repeat_action_probability=float(spec.kwargs.get("repeat_action_probability", 0.25)),
        full_action_space=bool(spec.kwargs.get("full_action_space", False)),
        noop_max=int(preprocessing["noop_max"]),
        fire_on_reset=False,
        training_max_frames=limit,
        evaluation_max_frames=limit,
        life_loss_terminates=bool(preprocessing.get("terminal_on_life_loss", False)),
    )


def _line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 120 else f"{text[:117]}..."
