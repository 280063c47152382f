"""Atari's experience as a LightningDataModule."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from datamodules.environments.atari import PROTOCOLS, AtariEnvironments, AtariProtocol, canonical_game
from datamodules.replay.priorities import Prioritised
from datamodules.replay_data import ReplayData
from modules.errors import UserError


class AtariReplay(ReplayData):
    """Collects Atari experience into a memory-mapped store, or reads one, and samples windows of it.

    Without `path` the run plays itself: its store lies in the run's own folder, and the `Collect` callback fills it
    while it trains. With `path` it trains from the rows of an existing store and plays nothing.

    Args:
        game: in any usual spelling; null takes that of the store at `path`.
        protocol: "atari100k" or "machado2018"; null takes that of the store at `path`.
        num_envs: environments that are played for training, each with an environment of its own.
        num_validation_envs: environments whose environments are held out for validation; 0 holds out nothing.
        size: height and width of a frame.
        color: "grey" or "rgb".
        frame_stack: frames in an observation.
        batch_size: windows in a batch, per rank.
        sequence_length: rows of a window.
        cross_episodes: let windows cross the ends of episodes; models mask what does not follow.
        capacity: training rows that the store keeps; the oldest make room for new ones.
        validation_batches: held-out batches per validation; no picture or report takes more windows than these hold.
        path: folder of an existing store.
        recent: training windows are drawn from the last so many rows of every environment; null draws from all. With
            `sequence_length` these are the newest rows alone, for on-policy learning.
        extras: float32 columns that actors leave beside their actions, such as log_prob and value.
        seed: of environments and sampling; null takes `seed_everything`.
        prioritised: draw training windows by what they have to teach; null draws uniformly.
        frames_on_device: keep a copy of all frames on the trainer's GPU and gather them there; on the CPU, nothing.
        num_threads: of the emulators; 0 for one per environment, at most one per core.
    """

    def __init__(
        self,
        game: str | None = None,
        protocol: Literal["atari100k", "machado2018"] | None = None,
        num_envs: int = 8,
        num_validation_envs: int = 1,
        size: tuple[int, int] = (84, 84),
        color: Literal["grey", "rgb"] = "grey",
        frame_stack: int = 4,
        batch_size: int = 16,
        sequence_length: int = 16,
        cross_episodes: bool = True,
        capacity: int = 100_000,
        validation_batches: int = 16,
        path: Path | None = None,
        recent: int | None = None,
        extras: tuple[str, ...] = (),
        seed: int | None = None,
        prioritised: Prioritised | None = None,
        frames_on_device: bool = False,
        num_threads: int = 0,
    ) -> None:
        super().__init__(
            num_envs=num_envs,
            num_validation_envs=num_validation_envs,
            frame_stack=frame_stack,
            batch_size=batch_size,
            sequence_length=sequence_length,
            cross_episodes=cross_episodes,
            capacity=capacity,
            validation_batches=validation_batches,
            path=path,
            recent=recent,
            extras=extras,
            seed=seed,
            prioritised=prioritised,
            frames_on_device=frames_on_device,
        )
        if num_threads < 0:
            raise UserError(f"data.num_threads must not be negative: got {num_threads}")
        self.num_threads = num_threads
        self.game = None if game is None else canonical_game(game)
        self.protocol: Literal["atari100k", "machado2018"] | None = protocol
        self.size = size
        self.color: Literal["grey", "rgb"] = color
        if path is None and game is None:
            raise UserError("data.game or data.path is needed: a game to play, or a store to read")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The game."""
        if self.game is not None:
            return self.game
        return self.description["game"]

    def expected(self) -> dict[str, Any]:
        """Return the game and the protocol, where they are given."""
        expected: dict[str, Any] = {"environment": "atari"}
        if self.game is not None:
            expected["game"] = self.game
        if self.protocol is not None:
            expected["protocol"] = dataclasses.asdict(PROTOCOLS[self.protocol])
        return expected

    def training_environment(self, num_envs: int, seed: int) -> AtariEnvironments:
        """Make the protocol's training variant."""
        assert self.game is not None
        return AtariEnvironments(
            self.game,
            num_envs,
            self.protocol or "atari100k",
            size=self.size,
            color=self.color,
            seed=seed,
            num_threads=self.num_threads,
        )

    def evaluation_environment(self, num_envs: int, seed: int) -> AtariEnvironments:
        """Make the evaluation variant of the protocol by which the store was played."""
        description = self.description
        return AtariEnvironments(
            description["game"],
            num_envs,
            AtariProtocol(**description["protocol"]),
            variant="evaluation",
            size=tuple(description["size"]),
            color=description["color"],
            seed=seed,
            num_threads=self.num_threads,
        )
