"""Atari games on ale-py's vector emulator. This file handles all traps of that emulator."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from datamodules.environments.environment import Transition, VectorEnvironment
from datamodules.environments.seeded import SeededVector
from modules.errors import UserError, nearest

SMALLEST = 11
"""Smallest side of a frame in pixels, which is the window of the structural similarity that measures predictions."""
# Loading one of these games kills the process, because it has no single-player form.
UNPLAYABLE = frozenset({"combat", "joust", "maze_craze", "warlords"})


@dataclass(frozen=True)
class AtariProtocol:
    """Rules by which a game is played and cut into episodes. Scores of two protocols are not comparable."""

    name: str
    frame_skip: int
    """Number of emulated frames per action, whose rewards are summed."""
    maxpool: bool
    """Whether an observation is the pixelwise maximum of the last two frames, which removes flicker."""
    repeat_action_probability: float
    """Sticky actions: the probability, per emulated frame, that the previous action is executed instead."""
    full_action_space: bool
    """Whether the agent has all 18 actions; false for the game's minimal set."""
    noop_max: int
    """Largest number of no-op frames at the start of a game, drawn uniformly from 0. They do not count towards the
    limits below."""
    fire_on_reset: bool
    """Whether FIRE is pressed at the start of a game, in every game that has FIRE."""
    training_max_frames: int
    """Number of emulated frames after which a game is truncated in training. A lost life does not restart the count."""
    evaluation_max_frames: int
    """Number of emulated frames after which a game is truncated in evaluation."""
    life_loss_terminates: bool
    """Whether a lost life ends the episode in training, while the game goes on. Evaluation always plays whole games."""


PROTOCOLS: dict[str, AtariProtocol] = {
    # Kaiser et al. 2020 (SimPLe), in the form that SPR, BBF, IRIS and DIAMOND share. The limit is that of DER, SPR and
    # BBF; IRIS trains on 20 000 frames and evaluates on 108 000, DIAMOND sets none. Without sticky actions the no-op
    # frames are the only randomness, so evaluation keeps them (as SPR, BBF and DIAMOND do; IRIS evaluates with at most
    # 1).
    "atari100k": AtariProtocol(
        name="atari100k",
        frame_skip=4,
        maxpool=True,
        repeat_action_probability=0.0,
        full_action_space=False,
        noop_max=30,
        fire_on_reset=False,
        training_max_frames=108_000,
        evaluation_max_frames=108_000,
        life_loss_terminates=True,
    ),
    # Machado et al. 2018, with the frame skip of 4 that the community uses (5 in the paper), pooled frames, and the
    # limit of Gymnasium's v5 games, 30 minutes at 60 Hz. Sticky actions are the only randomness.
    "machado2018": AtariProtocol(
        name="machado2018",
        frame_skip=4,
        maxpool=True,
        repeat_action_probability=0.25,
        full_action_space=True,
        noop_max=0,
        fire_on_reset=False,
        training_max_frames=108_000,
        evaluation_max_frames=108_000,
        life_loss_terminates=False,
    ),
}


def game_names() -> tuple[str, ...]:
    """Return the snake_case ids of all playable games, sorted."""
    return tuple(sorted(set(roms.get_all_rom_ids()) - UNPLAYABLE))


def canonical_game(name: str) -> str:
    """Return ALE's snake_case id of a game in any usual spelling: MsPacman, "Ms. Pac-Man", ALE/MsPacman-v5, ...

    Suffixes of Gymnasium's ids are dropped, because the protocol sets frame skip and sticky actions.

    Raises:
        UserError: there is no such game, or it has no single-player form.
    """
    short = re.sub(r"^ALE/", "", name.strip(), flags=re.IGNORECASE)
    short = re.sub(r"((NoFrameskip|Deterministic)?-v\d+)$", "", short, flags=re.IGNORECASE)
    key = re.sub(r"['\u2019]s\b|[\W_]", "", short.lower())
    games = {game.replace("_", ""): game for game in game_names()}
    if key in games:
        return games[key]
    if key in {game.replace("_", "") for game in UNPLAYABLE}:
        raise UserError(f"game {name!r} has no single-player form: choose another of the {len(games)} Atari games")
    close = difflib.get_close_matches(key, games, n=3) or difflib.get_close_matches(key, games, n=3, cutoff=0.0)
    nearest = ", ".join(games[match] for match in close)
    raise UserError(f"unknown game {name!r}: expected one of the {len(games)} Atari games, the nearest are {nearest}")


def resolve(
    game: str,
    num_envs: int,
    protocol: str | AtariProtocol,
    variant: str,
    size: tuple[int, int],
    color: str,
    seed: int,
) -> tuple[str, AtariProtocol]:
    """Check the arguments of environments, and return ALE's id of the game and the protocol.

    Raises:
        UserError: the game, protocol, variant or color is unknown, or a number is impossible.
    """
    game = canonical_game(game)
    if not isinstance(protocol, AtariProtocol):
        protocol = PROTOCOLS[_choice("protocol", protocol, PROTOCOLS)]
    _choice("variant", variant, ("training", "evaluation"))
    _choice("color", color, ("grey", "rgb"))
    check_size(size)
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1: got {num_envs}")
    if seed < 0:
        raise UserError(f"seed must not be negative: got {seed}")
    return game, protocol


def check_size(size: tuple[int, ...]) -> None:
    """Raise a UserError unless frames of this size, (height, width), can be learned from and measured."""
    if len(size) != 2 or not all(isinstance(side, int) and side >= SMALLEST for side in size):
        raise UserError(
            f"size must be two numbers of pixels of at least {SMALLEST}, (height, width) such as [84, 84]: "
            f"got {list(size)}"
        )


class Episodes(NamedTuple):
    """State of N episodes that a lost life may end while the game goes on, (N,) bool each.

    The row after the last row of an episode starts the next one: a finished game starts anew, and after a lost life a
    NOOP is played. If that NOOP loses a life too, or reaches the limit, one row would both start and end an episode.
    The end is then moved to an additional row, which repeats the frame.
    """

    closed: np.ndarray
    """Whether the last row ended an episode."""
    held_terminated: np.ndarray
    """Whether the next row is an additional one, which terminates the episode that the last row started."""
    held_truncated: np.ndarray
    """Whether the next row is an additional one, which truncates the episode that the last row started."""

    @classmethod
    def new(cls, num_envs: int) -> Episodes:
        """Return the state of N episodes that have just started."""
        return cls(*(np.zeros(num_envs, bool) for _ in cls._fields))

    @property
    def held(self) -> np.ndarray:
        """Whether the next row is an additional one, which repeats the frame, (N,)."""
        return self.held_terminated | self.held_truncated

    @property
    def passive(self) -> np.ndarray:
        """Whether the next row ignores its action and earns 0, because it plays a NOOP or starts a game, (N,)."""
        return self.closed | self.held

    def after(self, ended: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray, Episodes]:
        """Return where a row terminates (N,) and truncates (N,) episodes, and the state of the episodes after it.

        Args:
            ended: flags (N,) bool: a life was lost in the row, or the game was over.
            cut: flags (N,) bool: the game reached its limit in the row.
        """
        passive = self.passive
        terminated = np.where(passive, self.held_terminated, ended)
        truncated = np.where(passive, self.held_truncated, cut)
        return terminated, truncated, Episodes(terminated | truncated, ended & self.closed, cut & self.closed)


class AtariEnvironments(VectorEnvironment):
    """N copies of an Atari game, with uint8 frames (1, H, W) or (3, H, W) and unclipped rewards.

    The list says how ale-py 0.12.1 behaves, as measured, and how this class handles it:

    - Unseeded environments share one random stream. This class seeds them by 31-bit draws, because with consecutive
      seeds environment 1 of seed 0 would equal environment 0 of seed 1.
    - `episodic_life` restarts the whole game at a lost life, so a learner would never see its second life. In this
      class the game goes on: the row after a lost life plays one NOOP step and drops its reward, and its observation
      starts the next episode (`EpisodicLifeEnv` of OpenAI baselines, as in IRIS). Only new games get no-op frames.
    - A game that ends leaves its frame skip before the screen is read: see `terminal_frame_repeats`.
    - `use_fire_reset` presses FIRE in every game that has it. Both protocols leave it off, so the agent learns to
      start the ball. Scores with it (TWM) are not comparable, and it does not help after a lost life.
    - A step with an action out of range never returns. This class checks the actions.
    - By default rewards are clipped and sticky actions are off. This class passes every option explicitly.
    - Each step returns a new buffer. The emulator's threads do not survive a fork.

    Args:
        game: name of the game in any usual spelling.
        num_envs: number of environments, N.
        protocol: name of a protocol in PROTOCOLS, or an AtariProtocol.
        variant: variant of the protocol: in training a lost life may end the episode.
        size: height and width of a frame; (210, 160) is the screen itself, other sizes are averaged by area.
        color: color of the frames, grey for one channel or rgb for three.
        seed: seed of all resets, no-ops and sticky actions; nonnegative.
        num_threads: number of threads of the emulators; 0 for one per environment, at most one per core.

    Raises:
        UserError: the game, protocol, variant or color is unknown, or a number is impossible. No game is loaded then.
    """

    terminal_frame_repeats: bool = True
    """Whether the last frame of a game repeats the frame before it instead of showing the true picture.

    If the game ends on the last two frames of a skip, as at a limit that is a multiple of the skip, the last frame is
    the pixelwise maximum of the frame before it and a newer one. This concerns game over and the limit, but not a lost
    life. The true frame cannot be recovered, so no model may learn to predict it, or a termination from it.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        protocol: str | AtariProtocol = "atari100k",
        variant: Literal["training", "evaluation"] = "training",
        size: tuple[int, int] = (84, 84),
        color: Literal["grey", "rgb"] = "grey",
        seed: int = 0,
        num_threads: int = 0,
    ) -> None:
        game, protocol = resolve(game, num_envs, protocol, variant, size, color, seed)
        training = variant == "training"
        self.num_envs = num_envs
        self.seed = seed
        self._grey = color == "grey"
        self._life_loss_terminates = training and protocol.life_loss_terminates
        height, width = size
        self.observation_shape = (1 if self._grey else 3, height, width)
        vector = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=protocol.training_max_frames if training else protocol.evaluation_max_frames,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=protocol.full_action_space,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=height,
            img_width=width,
            grayscale=self._grey,
            stack_num=1,
            frameskip=protocol.frame_skip,
            maxpool=protocol.maxpool,
            # ALE draws from 0 to noop_max - 1.
            noop_max=protocol.noop_max + 1,
            # life_loss_info reports lost lives. `episodic_life` would restart the game.
            episodic_life=False,
            life_loss_info=self._life_loss_terminates,
            reward_clipping=False,
            use_fire_reset=protocol.fire_on_reset,
        )
        self._vector = SeededVector(vector, seed, whole=False, name=game)
        self.action_meanings = tuple(action.name for action in vector.ale.get_action_set())
        self.num_actions = len(self.action_meanings)
        assert vector.single_action_space == Discrete(self.num_actions)
        # backgammon and video_checkers have no NOOP in their minimal set, and no lives to lose.
        self._noop = self.action_meanings.index("NOOP") if "NOOP" in self.action_meanings else 0
        self.description = {
            "environment": "atari",
            "game": game,
            "protocol": dataclasses.asdict(protocol),
            "variant": variant,
            "size": [height, width],
            "color": color,
            "action_meanings": list(self.action_meanings),
            "terminal_frame_repeats": self.terminal_frame_repeats,
        }

    def reset(self, stream: int = 0) -> np.ndarray:
        """Start N new games, and return their first frames (N, C, H, W)."""
        observation = self._vector.reset(stream)
        self.seeds = self._vector.seeds.copy()
        self._episodes = Episodes.new(self.num_envs)
        self._observation = self._frames(observation)
        return self._observation

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,) int64, each for `frame_skip` frames."""
        assert ((actions >= 0) & (actions < self.num_actions)).all(), f"actions outside [0, {self.num_actions})"
        if self._life_loss_terminates:
            return self._step_lives(actions)
        observation, reward, terminated, truncated = self._vector.step(actions)
        self._observation = self._frames(observation)
        return Transition(self._observation, reward.astype(np.float32), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the actions of every game, and the state of its episode."""
        flags = {f"_{name}": torch.from_numpy(flag.copy()) for name, flag in self._episodes._asdict().items()}
        return {"games": self._vector.state_dict(), "observation": torch.from_numpy(self._observation.copy()), **flags}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Replay all running games from their seeds and actions, and return their present frames (N, C, H, W).

        Raises:
            UserError: the frames differ from those that were saved.
        """
        frames = self._frames(self._vector.load_state_dict(state["games"]))
        self.seeds = self._vector.seeds.copy()
        self._episodes = Episodes(*(state[f"_{name}"].numpy().copy() for name in Episodes._fields))
        self._observation = state["observation"].numpy().copy()
        shown = ~self._episodes.held
        if not np.array_equal(frames[shown], self._observation[shown]):
            raise UserError(
                "the replayed games differ from the games that were saved: is this another version of ale-py?"
            )
        return self._observation

    def close(self) -> None:
        """Stop the emulators and their threads."""
        self.__dict__.pop("_vector", None)

    def _step_lives(self, actions: np.ndarray) -> Transition:
        episodes, passive = self._episodes, self._episodes.passive  # ALE restarts a finished game by itself
        emulated, reward, ended, cut = self._vector.step(np.where(passive, self._noop, actions))
        observation = self._frames(emulated)
        observation[episodes.held] = self._observation[episodes.held]
        terminated, truncated, self._episodes = episodes.after(ended, cut)
        self._observation = observation
        return Transition(observation, np.where(passive, 0, reward).astype(np.float32), terminated, truncated)

    def _frames(self, observation: np.ndarray) -> np.ndarray:
        # Grey frames are (N, 1, H, W) already. RGB frames are (N, 1, H, W, 3) and become (N, 3, H, W).
        return observation if self._grey else np.ascontiguousarray(observation[:, 0].transpose(0, 3, 1, 2))


def _choice(option: str, value: str, choices: Iterable[str]) -> str:
    choices = tuple(choices)
    if value in choices:
        return value
    raise UserError(
        f"unknown {option} {value!r}: expected one of {', '.join(choices)}, "
        f"the nearest is {nearest(str(value), choices)}"
    )
