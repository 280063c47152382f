"""Atari emulators that can be cloned and restored, for planning in the emulator itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from ale_py import ALEInterface, ALEState, LoggerMode, roms

from datamodules.environments.atari import AtariProtocol, Episodes, resolve
from datamodules.environments.environment import Transition, VectorEnvironment
from modules.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class Clone:
    """Immutable state of a game, which any emulator of that game can restore."""

    state: ALEState
    executed: int
    """ALE's number of the action that the newest frame executed. Sticky actions repeat it, and ALE's state lacks it."""
    frames: int
    """Number of frames emulated since the game started."""
    lives: int
    """Number of lives after the last row."""
    over: bool
    """Whether the game has ended or reached its limit of frames."""
    closed: bool
    """Whether the last row ended an episode."""
    held: tuple[bool, bool]
    """`held_terminated` and `held_truncated` of `atari.Episodes`."""
    screen: np.ndarray | None
    """Pooled screen (H, W) or (H, W, 3) uint8, because ALE's screen is stale after a restore; None if it was not read.
    """


class Emulator:
    """One game under a protocol. Sticky actions are drawn by this class, because ALE cannot clone its own.

    Args:
        game: id of the game in ALE.
        protocol: protocol of the game: frame skip, pooling, sticky actions, set of actions, no-op frames and FIRE.
        max_frames: number of emulated frames at which a game is over.
        grey: read grey screens; false reads RGB screens.
        mode: mode of the game, one of ALE's numbers; null is the game's default.
        difficulty: difficulty of the game, one of ALE's numbers; null is the game's default.

    Raises:
        UserError: the game does not have the mode or the difficulty.
    """

    executed: int
    frames: int
    lives: int
    over: bool
    closed: bool
    held: tuple[bool, bool]
    screen: np.ndarray | None
    """These attributes mean what the fields of `Clone` mean."""

    def __init__(
        self,
        game: str,
        protocol: AtariProtocol,
        max_frames: int,
        grey: bool = True,
        mode: int | None = None,
        difficulty: int | None = None,
    ) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", 0)
        self.ale.setFloat("repeat_action_probability", 0.0)
        path = roms.get_rom_path(game)
        assert path is not None
        self.ale.loadROM(path)
        if mode is not None:
            _one_of("mode", game, mode, self.ale.getAvailableModes())
            self.ale.setMode(mode)
        if difficulty is not None:
            _one_of("difficulty", game, difficulty, self.ale.getAvailableDifficulties())
            self.ale.setDifficulty(difficulty)
        actions = self.ale.getLegalActionSet() if protocol.full_action_space else self.ale.getMinimalActionSet()
        self.action_meanings = tuple(action.name for action in actions)
        # backgammon and video_checkers have no NOOP in their minimal set, and no lives to lose.
        self.noop = self.action_meanings.index("NOOP") if "NOOP" in self.action_meanings else 0
        self.protocol = protocol
        self.max_frames = max_frames
        self.screen = None
        self._codes = [int(action.value) for action in actions]
        self._read = self.ale.getScreenGrayscale if grey else self.ale.getScreenRGB
        self._start()

    def open(self, generator: np.random.Generator) -> None:
        """Start a new game, and play the protocol's no-op frames."""
        self._start()
        if self.protocol.fire_on_reset and "FIRE" in self.action_meanings:
            self.ale.act(self._codes[self.action_meanings.index("FIRE")])
        for _ in range(int(generator.integers(self.protocol.noop_max + 1))):
            self.ale.act(self._codes[self.noop])
            if self.ale.game_over():
                self._start()
        self.lives = self.ale.lives()
        self.screen = self._read()

    def act(self, action: int, generator: np.random.Generator, look: bool = True) -> float:
        """Execute an action for `frame_skip` frames, or until the game ends, and return the sum of their rewards.

        Args:
            action: number of the action in [0, actions).
            generator: generator of sticky actions.
            look: read the screen.
        """
        chance, skip = self.protocol.repeat_action_probability, self.protocol.frame_skip
        earned, before = 0, None
        for frame in range(skip):
            if self.over:
                break
            if not chance or generator.random() >= chance:
                self.executed = self._codes[action]
            earned += self.ale.act(self.executed)
            self.frames += 1
            self.over = self.frames >= self.max_frames or self.ale.game_over()
            if look and frame == skip - 2 and self.protocol.maxpool and not self.over:
                before = self._read()
        if look:
            newest = self._read()
            self.screen = newest if before is None else np.maximum(before, newest)
        return float(earned)

    def ended(self) -> bool:
        """Return whether the game itself is over, which it is not at the limit of frames."""
        return self.ale.game_over()

    def clone(self, look: bool = True) -> Clone:
        """Return the present state; without `look` the clone has no screen."""
        screen = self.screen if look else None
        return Clone(
            self.ale.cloneState(), self.executed, self.frames, self.lives, self.over, self.closed, self.held, screen
        )

    def restore(self, clone: Clone) -> None:
        """Continue from the state of a clone of the same game."""
        self.ale.restoreState(clone.state)
        self.executed, self.frames, self.lives = clone.executed, clone.frames, clone.lives
        self.over, self.closed, self.held, self.screen = clone.over, clone.closed, clone.held, clone.screen

    def _start(self) -> None:
        self.ale.reset_game()
        self.executed = 0  # ALE's number of NOOP
        self.frames, self.lives = 0, self.ale.lives()
        self.over = self.closed = False
        self.held = False, False


class AtariEmulators(VectorEnvironment):
    """N copies of an Atari game that can be cloned, with uint8 frames (1, H, W) or (3, H, W) and unclipped rewards.

    The games are those of `AtariEnvironments`, several times slower. Two things differ: the last frame of a game is a
    true picture, and modes and difficulties can be chosen. All randomness, of no-op frames and sticky actions, comes
    from one generator per environment, which is not part of a clone.

    Args:
        game: name of the game in any usual spelling.
        num_envs: number of environments, N.
        protocol: name of a protocol in PROTOCOLS, or an AtariProtocol.
        variant: variant of the protocol: in training a lost life may end the episode.
        size: height and width of a frame; (210, 160) is the screen itself, other sizes are averaged by area.
        color: color of the frames, grey for one channel or rgb for three.
        seed: seed of all resets, no-ops and sticky actions; nonnegative.
        mode: mode of the game, one of ALE's numbers; null is the game's default.
        difficulty: difficulty of the game, one of ALE's numbers; null is the game's default.

    Raises:
        UserError: the game, protocol, variant, color, mode or difficulty is unknown, or a number is impossible.
    """

    terminal_frame_repeats: bool = False

    def __init__(
        self,
        game: str,
        num_envs: int,
        protocol: str | AtariProtocol = "atari100k",
        variant: Literal["training", "evaluation"] = "training",
        size: tuple[int, int] = (84, 84),
        color: Literal["grey", "rgb"] = "grey",
        seed: int = 0,
        mode: int | None = None,
        difficulty: int | None = None,
    ) -> None:
        game, protocol = resolve(game, num_envs, protocol, variant, size, color, seed)
        training = variant == "training"
        self.num_envs = num_envs
        self.seed = seed
        self.protocol = protocol
        self._life_loss_terminates = training and protocol.life_loss_terminates
        max_frames = protocol.training_max_frames if training else protocol.evaluation_max_frames
        self.made_of: dict[str, Any] = {
            "game": game,
            "protocol": protocol,
            "max_frames": max_frames,
            "grey": color == "grey",
            "mode": mode,
            "difficulty": difficulty,
        }
        """Arguments of `Emulator` for another emulator of this game."""
        self._emulators = [self.emulator() for _ in range(num_envs)]
        self.observation_shape = (1 if color == "grey" else 3, *size)
        self.action_meanings = self._emulators[0].action_meanings
        self.num_actions = len(self.action_meanings)
        self.description = {
            "environment": "atari",
            "game": game,
            "protocol": dataclasses.asdict(protocol),
            "variant": variant,
            "size": list(size),
            "color": color,
            "action_meanings": list(self.action_meanings),
            "terminal_frame_repeats": self.terminal_frame_repeats,
            "mode": mode,
            "difficulty": difficulty,
        }

    def emulator(self) -> Emulator:
        """Return a further emulator of this game for planning. It can restore the clones of these environments."""
        return Emulator(**self.made_of)

    def reset(self, stream: int = 0) -> np.ndarray:
        """Start N new games, and return their first frames (N, C, H, W)."""
        self.seeds = (np.random.SeedSequence((self.seed, stream)).generate_state(self.num_envs) >> 1).astype(np.int64)
        self._generators = [np.random.default_rng(seed) for seed in self.seeds]
        for emulator, generator in zip(self._emulators, self._generators, strict=True):
            emulator.open(generator)
        return self.observe()

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,) int64, each for `frame_skip` frames."""
        assert ((actions >= 0) & (actions < self.num_actions)).all(), f"actions outside [0, {self.num_actions})"
        episodes = Episodes(*np.array([(emulator.closed, *emulator.held) for emulator in self._emulators], bool).T)
        passive, held = episodes.passive, episodes.held
        reward = np.zeros(self.num_envs, np.float32)
        ended, cut = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, (emulator, generator) in enumerate(zip(self._emulators, self._generators, strict=True)):
            shown = emulator.screen
            if emulator.over:
                emulator.open(generator)
            else:
                earned = emulator.act(emulator.noop if passive[i] else int(actions[i]), generator)
                reward[i] = 0 if passive[i] else earned
                lost = self._life_loss_terminates and emulator.ale.lives() < emulator.lives
                ended[i] = emulator.ended() or lost
                cut[i] = emulator.over and not ended[i]
                emulator.lives = emulator.ale.lives()
            if held[i]:
                emulator.screen = shown
        terminated, truncated, episodes = episodes.after(ended, cut)
        for emulator, closed, ends, cuts in zip(self._emulators, *episodes, strict=True):
            emulator.closed, emulator.held = bool(closed), (bool(ends), bool(cuts))
        return Transition(self.observe(), reward, terminated, truncated)

    def screens(self) -> np.ndarray:
        """Return the screens (N, 210, 160, 3) uint8 of the last emulated frames, in colour and unscaled."""
        return np.stack([emulator.ale.getScreenRGB() for emulator in self._emulators])

    def clone(self) -> np.ndarray:
        """Return the present states (N,) as `Clone` objects."""
        clones = np.empty(self.num_envs, object)
        clones[:] = [emulator.clone() for emulator in self._emulators]
        return clones

    def restore(self, clones: Sequence[Clone] | np.ndarray) -> np.ndarray:
        """Continue from clones (N,) of this game, and return their frames (N, C, H, W)."""
        assert len(clones) == self.num_envs, f"{len(clones)} clones for {self.num_envs} environments"
        for emulator, clone in zip(self._emulators, clones, strict=True):
            emulator.restore(clone)
        if not hasattr(self, "_generators"):
            self.seeds = (np.random.SeedSequence(self.seed).generate_state(self.num_envs) >> 1).astype(np.int64)
            self._generators = [np.random.default_rng(seed) for seed in self.seeds]
        return self.observe()

    def observe(self, clones: Sequence[Clone] | np.ndarray | None = None) -> np.ndarray:
        """Return the frames (B, C, H, W) of clones, or the present frames (N, C, H, W) if `clones` is None."""
        screens = [moment.screen for moment in (self._emulators if clones is None else clones)]
        assert all(screen is not None for screen in screens), "a clone that was made without a screen has no frame"
        frames = np.stack(screens)  # type: ignore[arg-type]
        if frames.ndim == 3:
            frames = frames[..., None]
        height, width = self.observation_shape[1:]
        return np.ascontiguousarray(average_areas(frames, height, width).transpose(0, 3, 1, 2))

    def close(self) -> None:
        """Free the emulators."""
        self._emulators = []


def average_areas(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames (B, H, W, C) uint8 to (B, height, width, C). A new pixel is the mean of the area that it covers.

    The result equals ALE's to the bit, except at exactly half the size, where ALE rounds all halves up.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    averaged = frames.astype(np.float32)
    for axis, side in ((2, width), (1, height)):  # width first, as in ALE: the order changes the rounding
        pixels, shares = areas(frames.shape[axis], side)
        shares = shares.reshape(*shares.shape, *[1] * (3 - axis))
        averaged = sum(averaged.take(which, axis) * share for which, share in zip(pixels, shares, strict=True))
    return np.rint(averaged).astype(np.uint8)


@cache
def areas(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the old pixels (K, target) that each new pixel covers, and their shares (K, target), which sum to 1."""
    size = source / target
    first = np.arange(target) * size
    pixels = np.floor(first).astype(np.int64) + np.arange(math.ceil(size) + 1)[:, None]
    overlap = np.minimum(first + size, pixels + 1) - np.maximum(first, pixels)
    return pixels.clip(max=source - 1), (overlap.clip(min=0) / size).astype(np.float32)


def _one_of(option: str, game: str, value: int, known: Sequence[int]) -> None:
    if value not in known:
        raise UserError(f"{game} has no {option} {value}: expected one of {', '.join(map(str, known))}")
