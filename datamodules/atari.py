"""Atari's experience as a LightningDataModule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from datamodules.collector import Collector
from datamodules.environments.atari import PROTOCOLS, AtariEnvironments, canonical_game
from datamodules.ranks import gather, generator, run_seed
from datamodules.replay import ReplayStore
from modules.batch import Batch
from modules.errors import UserError
from modules.world_model import Spec


class Windows(IterableDataset):
    """Endless training batches, or a fixed number of held-out ones."""

    def __init__(self, data: AtariReplay, num_batches: int | None = None) -> None:
        self.data = data
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        if self.num_batches is None:
            while True:
                yield {"real": self.data.sample()}
        generator = np.random.default_rng(run_seed())
        for _ in range(self.num_batches):
            yield {"real": self.data.sample(lanes="validation", source=generator)}


class AtariReplay(LightningDataModule):
    """Collects Atari experience into a memory-mapped store, or reads one, and samples windows of it.

    Without `path` the run plays itself: its store lies in the run's own folder, and the `Collect` callback fills it
    while it trains. With `path` it trains from the rows of an existing store and plays nothing.

    Args:
        game: in any usual spelling; null takes that of the store at `path`.
        protocol: "atari100k" or "machado2018"; null takes that of the store at `path`.
        num_envs: environments that are played for training, each with a lane of its own.
        num_validation_envs: environments whose lanes are held out for validation.
        size: height and width of a frame.
        color: "grey" or "rgb".
        frame_stack: frames in an observation.
        batch_size: windows in a batch, per rank.
        sequence_length: rows of a window.
        cross_episodes: let windows cross the ends of episodes; models mask what does not follow.
        capacity: training rows that the store keeps; the oldest make room for new ones.
        validation_batches: held-out batches per validation; no picture or report takes more windows than these hold.
        path: folder of an existing store.
        seed: of environments and sampling; null takes `seed_everything`.
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
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.game = None if game is None else canonical_game(game)
        self.protocol: Literal["atari100k", "machado2018"] | None = protocol
        self.num_envs = num_envs
        self.num_validation_envs = num_validation_envs
        self.size = size
        self.color: Literal["grey", "rgb"] = color
        self.frame_stack = frame_stack
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.cross_episodes = cross_episodes
        self.capacity = capacity
        self.validation_batches = validation_batches
        self.path = path
        self.seed = seed
        self.rank = 0
        self.store: ReplayStore | None = None
        if sequence_length < 2:
            raise UserError(
                f"data.sequence_length must be at least 2, a row and the one after it: got {sequence_length}"
            )
        for name in ("num_envs", "frame_stack", "batch_size", "capacity", "validation_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1: got {getattr(self, name)}")
        if path is None and game is None:
            raise UserError("data.game or data.path is needed: a game to play, or a store to read")

    def setup(self, stage: str) -> None:
        """Open the store at `path`, or the run's own."""
        if self.store is not None:
            return
        self.rank = self.trainer.global_rank if self.trainer else 0
        self.generator = generator(self.rank, "replay", self.seed)
        if self.path is not None:
            self.store = self.open(self.path)
            return
        assert self.trainer is not None
        path = Path(self.trainer.default_root_dir) / "replay" / f"rank{self.rank}"
        self.store = self.open(path, writable=True) if path.exists() else self.create(path)

    def open(self, path: Path, writable: bool = False) -> ReplayStore:
        """Open a store, which must be of this game and protocol."""
        expect: dict[str, Any] = {}
        if self.game is not None:
            expect["game"] = self.game
        if self.protocol is not None:
            expect["protocol"] = dataclasses.asdict(PROTOCOLS[self.protocol])
        return ReplayStore.open(path, writable=writable, expect=expect)

    def create(self, path: Path) -> ReplayStore:
        """Make an empty store with a lane for every environment."""
        environment = self.environment
        return ReplayStore.create(
            path,
            observation_shape=environment.observation_shape,
            num_actions=environment.num_actions,
            lanes=environment.num_envs,
            validation_lanes=self.num_validation_envs,
            capacity=-(-self.capacity // self.num_envs),
            description=environment.description,
        )

    @cached_property
    def environment(self) -> AtariEnvironments:
        """The environments, training ones first."""
        assert self.game is not None
        return AtariEnvironments(
            self.game,
            self.num_envs + self.num_validation_envs,
            self.protocol or "atari100k",
            size=self.size,
            color=self.color,
            seed=int(generator(self.rank, "environment", self.seed).integers(2**31)),
        )

    @cached_property
    def collector(self) -> Collector | None:
        """What fills the store; None where it is only read. Made after a checkpoint was restored: it opens episodes."""
        assert self.store is not None
        return Collector(self.environment, self.store) if self.store.writable else None

    @property
    def spec(self) -> Spec:
        """What networks are built for."""
        assert self.store is not None
        return Spec(tuple(self.store.observation_shape), self.frame_stack, self.store.num_actions)

    @property
    def env_steps(self) -> int:
        """Real steps in the training lanes of this rank, overwritten ones included."""
        assert self.store is not None
        return self.store.rows * (self.store.lanes - self.store.validation_lanes)

    def sample(
        self,
        batch_size: int | None = None,
        sequence_length: int | None = None,
        lanes: Literal["training", "validation"] = "training",
        source: np.random.Generator | None = None,
    ) -> Batch:
        """Draw windows: the datamodule's own batch unless told otherwise."""
        assert self.store is not None
        return self.store.sample(
            source or self.generator,
            batch_size or self.batch_size,
            sequence_length or self.sequence_length,
            frame_stack=self.frame_stack,
            lanes=lanes,
            cross_episodes=self.cross_episodes,
        )

    def held_out(self, sequence_length: int, num_windows: int) -> Batch:
        """Return at most so many held-out windows that lie evenly spaced in the store, whatever was sampled before.

        They may cross the ends of episodes, but none begins with the row that closes one. They are shorter than asked
        where the store is.
        """
        assert self.store is not None
        sequence_length = min(sequence_length, self.store.rows - self.store.oldest)
        lane, start = self.store.windows(sequence_length, "validation")
        num_windows = min(num_windows, self.validation_batches * self.batch_size)
        pick = np.linspace(0, len(lane) - 1, min(2 * num_windows, len(lane))).round().astype(np.int64)
        batch = self.store.gather(lane[pick], start[pick], sequence_length, self.frame_stack)
        opens = (~batch.is_last[:, 0]).nonzero()[:, 0]
        return batch[opens[:: max(1, len(opens) // num_windows)][:num_windows]]

    def train_dataloader(self) -> DataLoader:
        """Endless batches {"real": (B, T)}; workers would copy the store and freeze its head."""
        return DataLoader(Windows(self), batch_size=None, num_workers=0)

    def val_dataloader(self) -> DataLoader:
        """Batches of held-out windows, the same ones every time the store is the same."""
        return DataLoader(Windows(self, self.validation_batches), batch_size=None, num_workers=0)

    def test_dataloader(self) -> DataLoader:
        """As for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """As for validation."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return every rank's cursor and generator; rows stay on disk."""
        assert self.store is not None
        return {"ranks": gather({"rows": self.store.rows, "generator": self.generator.bit_generator.state})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Cut the store back to the cursor and go on drawing where the run stopped."""
        assert self.store is not None
        ranks = state_dict["ranks"]
        state = ranks[self.rank % len(ranks)]
        self.generator.bit_generator.state = state["generator"]
        if self.store.writable:
            self.store.truncate(state["rows"])

    def teardown(self, stage: str) -> None:
        """Stop the emulators and let go of the store."""
        if "environment" in self.__dict__:
            self.environment.close()
        if self.store is not None:
            self.store.close()
        for name in ("environment", "collector"):
            self.__dict__.pop(name, None)
        self.store = None
