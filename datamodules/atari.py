"""Atari experience as a LightningDataModule."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from datamodules.environments.atari import PROTOCOLS, AtariEnvironments, AtariProtocol, canonical_game
from datamodules.environments.emulator import AtariEmulators
from datamodules.replay_data import ReplayData
from datamodules.settings import Envs, Sampling, Storage
from modules.errors import UserError


class AtariReplay(ReplayData):
    """Collects Atari experience into a memory-mapped store, or reads one, and samples windows of it.

    Without `path` the run plays the game itself: the `Collect` callback fills a store in the run's folder during
    training. With `path` the run trains from the rows of an existing store and plays nothing.

    Args:
        game: name of the game in any usual spelling; null takes the game of the store at `path`.
        protocol: name of the protocol, "atari100k" or "machado2018"; null takes the protocol of the store at `path`.
        size: height and width of a frame.
        color: color of the frames, "grey" or "rgb".
        num_threads: number of threads of the emulators; 0 takes one per environment, at most one per core.
    """

    def __init__(
        self,
        game: str | None = None,
        protocol: Literal["atari100k", "machado2018"] | None = None,
        size: tuple[int, int] = (84, 84),
        color: Literal["grey", "rgb"] = "grey",
        frame_stack: int = 4,
        num_threads: int = 0,
        envs: Envs = Envs(training=8, validation=1),
        sampling: Sampling = Sampling(),
        storage: Storage = Storage(),
        path: Path | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(frame_stack, envs, sampling, storage, path, seed)
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
        """Name of the game."""
        if self.game is not None:
            return self.game
        return self.description["game"]

    def expected(self) -> dict[str, Any]:
        """Return the game and the protocol, if they are given."""
        expected: dict[str, Any] = {"environment": "atari"}
        if self.game is not None:
            expected["game"] = self.game
        if self.protocol is not None:
            expected["protocol"] = dataclasses.asdict(PROTOCOLS[self.protocol])
        return expected

    def training_environment(self, num_envs: int, seed: int) -> AtariEnvironments:
        """Make environments of the protocol's training variant."""
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
        """Make environments of the evaluation variant of the store's protocol."""
        return AtariEnvironments(
            **self._described(), num_envs=num_envs, variant="evaluation", seed=seed, num_threads=self.num_threads
        )

    def clonable_environment(
        self, num_envs: int, seed: int, variant: Literal["training", "evaluation"]
    ) -> AtariEmulators:
        """Make emulators, which play the same game several times more slowly."""
        if variant == "evaluation":
            return AtariEmulators(**self._described(), num_envs=num_envs, variant=variant, seed=seed)
        assert self.game is not None
        protocol = self.protocol or "atari100k"
        return AtariEmulators(self.game, num_envs, protocol, variant, self.size, self.color, seed)

    def screened_environment(self, num_envs: int, seed: int) -> AtariEmulators:
        """Make emulators for evaluation, which show their screens in colour."""
        return self.clonable_environment(num_envs, seed, "evaluation")

    def _described(self) -> dict[str, Any]:
        """Return the arguments of environments of the store's game, protocol and frames."""
        description = self.description
        return {
            "game": description["game"],
            "protocol": AtariProtocol(**description["protocol"]),
            "size": tuple(description["size"]),
            "color": description["color"],
        }
