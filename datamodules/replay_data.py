"""The base class of all LightningDataModules of replayed experience."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from datamodules.collector import Collector
from datamodules.environments.environment import VectorEnvironment
from datamodules.ranks import gather, generator, of_rank, run_seed
from datamodules.replay.sampler import Sampler
from datamodules.replay.store import ReplayStore
from datamodules.settings import Envs, Sampling, Storage
from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.world_model import Spec

RESUME_MARGIN = 2048
"""Extra rows kept per environment, so that resuming from the last checkpoint can undo up to RESUME_MARGIN appended
rows."""


class Windows(IterableDataset):
    """Yields endless training batches, or a fixed number of held-out batches."""

    def __init__(self, data: ReplayData, num_batches: int | None = None) -> None:
        self.data = data
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        if self.num_batches is None:
            while True:
                yield self.data.training_batch()
        generator, windows = np.random.default_rng(run_seed()), self.data.sampling.of_model
        for _ in range(self.num_batches):
            yield {"real": self.data.sample(windows.batch_size, windows.sequence_length, "validation", generator)}


class Running(Protocol):
    """A player of the environments."""

    def running(self) -> list[dict[str, Any]] | None:
        """Return the states of the running episodes, one per player; None if they cannot be continued."""
        ...


class ReplayData(LightningDataModule, ABC):
    """Collects experience into a memory-mapped store, or reads one, and samples windows of it.

    A subclass defines the world: `name`, `expected` and the two kinds of environments. All subclasses share the other
    arguments of the constructor.

    Args:
        frame_stack: number of frames in an observation; 1 for vectors.
        envs: numbers of environments that are played.
        sampling: settings of the windows that batches consist of.
        storage: settings of the rows that the run's store keeps.
        path: folder of an existing store to read; null plays and fills a store in the run's folder.
        seed: seed of environments and sampling; null takes `seed_everything`.
    """

    num_threads = 0
    """Number of threads of the environments; 0 lets the environments choose."""

    def __init__(
        self,
        frame_stack: int,
        envs: Envs,
        sampling: Sampling,
        storage: Storage,
        path: Path | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.frame_stack = frame_stack
        self.envs, self.sampling, self.storage = envs, sampling, storage
        self.path = path
        self.seed = seed
        self.rank = 0
        self.unstored_steps = 0
        """Number of real steps of this rank that the run learned from without storing them."""
        self.wants_clones = False
        """Whether a callback of the run plans from clones of the training environments."""
        self._store: ReplayStore | None = None
        self.running: list[dict[str, Any]] | None = None
        """The state of the environments, one entry per player, in the checkpoint that the run resumes from."""
        self.described: dict[str, Any] = {}
        """Description of the store that a checkpoint was trained from; it is used while no store is open."""
        check_range("data.frame_stack", frame_stack, 1)
        check_range("data.seed", seed, 0)

    # The world.

    @property
    @abstractmethod
    def name(self) -> str:  # type: ignore[override]
        """Name of the world: pong, CartPole-v1."""

    @abstractmethod
    def expected(self) -> dict[str, Any]:
        """Return the entries that the description of a store of this world must have."""

    @abstractmethod
    def training_environment(self, num_envs: int, seed: int) -> VectorEnvironment:
        """Make environments for training."""

    @abstractmethod
    def evaluation_environment(self, num_envs: int, seed: int) -> VectorEnvironment:
        """Make environments for evaluation, with the store's world and protocol."""

    def clonable_environment(
        self, num_envs: int, seed: int, variant: Literal["training", "evaluation"]
    ) -> VectorEnvironment:
        """Make environments that can be cloned, for an actor that plans in the true rules.

        Raises:
            UserError: the world cannot be cloned.
        """
        raise UserError(f"{self.name} cannot be cloned, so a search cannot plan in its true rules: use an Atari game")

    def screened_environment(self, num_envs: int, seed: int) -> VectorEnvironment:
        """Make environments for evaluation that can show their screens, if there are any of this world."""
        return self.evaluation_environment(num_envs, seed)

    def playing_environment(self, num_envs: int, seed: int) -> VectorEnvironment:
        """Make the training environments that the run's actors play, which can be cloned if an actor wants clones."""
        if self.wants_clones:
            return self.clonable_environment(num_envs, seed, "training")
        return self.training_environment(num_envs, seed)

    @property
    def description(self) -> dict[str, Any]:
        """The store's description of its world, or `described` while no store is open."""
        return self.described if self._store is None else self._store.description

    # The store.

    @property
    def store(self) -> ReplayStore:
        """The open store.

        Raises:
            UserError: no store is open.
        """
        if self._store is None:
            raise UserError(f"{type(self).__name__} has no open store: a run opens it before training, by setup")
        return self._store

    @store.setter
    def store(self, store: ReplayStore) -> None:
        self._store = store

    def setup(self, stage: str) -> None:
        """Open the store at `path`, or open or make the run's own store."""
        if self._store is not None:
            return
        self.rank = self.trainer.global_rank if self.trainer else 0
        callbacks = self.trainer.callbacks if self.trainer else []  # type: ignore[attr-defined]
        self.wants_clones = any(getattr(callback, "wants_clones", False) for callback in callbacks)
        if self.path is not None:
            self.store = self.open(self.path)
        else:
            assert self.trainer is not None
            path = Path(self.trainer.default_root_dir) / "replay" / f"rank{self.rank}"
            self.store = self._reopen(path) if path.exists() else self.create(path)
        if self.storage.frames_on_device and self.trainer and self.trainer.strategy.root_device.type != "cpu":
            self.store.keep_frames_on(self.trainer.strategy.root_device)

    def open(self, path: Path, writable: bool = False) -> ReplayStore:
        """Open a store, and check that it holds this world and the extra columns."""
        store = ReplayStore.open(path, writable=writable, expect=self.expected())
        if missing := [name for name in self.storage.extras if name not in store.extras]:
            store.close()
            held = ", ".join(store.extras) or "none"
            raise UserError(f"data.storage.extras: {path} has no column {missing[0]}, its extra columns are: {held}")
        return store

    def _reopen(self, path: Path) -> ReplayStore:
        """Open the run's own store, and check that the numbers of environments are unchanged."""
        store = self.open(path, writable=True)
        held = Envs(store.num_envs - store.num_validation_envs, store.num_validation_envs)
        for name, number in asdict(held).items():
            if (wanted := getattr(self.envs, name)) != number:
                store.close()
                raise UserError(
                    f"data.envs.{name} is {wanted}, but {path} was begun with {number}: a run goes on with as many "
                    "environments as it has"
                )
        return store

    def create(self, path: Path, spare: int = RESUME_MARGIN) -> ReplayStore:
        """Make an empty store with a ring of rows per environment; a recording needs no spare rows."""
        environment = self.environment
        vectors = len(environment.observation_shape) == 1
        return ReplayStore.create(
            path,
            observation_shape=environment.observation_shape,
            observation_dtype=np.float32 if vectors else np.uint8,
            num_actions=environment.num_actions,
            num_envs=environment.num_envs,
            num_validation_envs=self.envs.validation,
            capacity=-(-self.storage.capacity // self.envs.training),
            spare=spare,
            extras={
                name: ("float32", (environment.num_actions,) if name == "search_policy" else ())
                for name in self.storage.extras
            },
            description=environment.description,
        )

    @cached_property
    def environment(self) -> VectorEnvironment:
        """The environments, with the training environments first."""
        seed = int(generator(self.rank, "environment", self.seed).integers(2**31))
        return self.playing_environment(self.envs.training + self.envs.validation, seed)

    @cached_property
    def collector(self) -> Running | None:
        """The player that fills the store; None if the store is only read.

        It must be made after a checkpoint is restored, since it continues the running episodes.
        """
        if not self.store.writable:
            return None
        (running,) = self.running if self.running is not None and len(self.running) == 1 else [None]
        return Collector(self.environment, self.store, running)

    @property
    def spec(self) -> Spec:
        """The shapes that networks are built for."""
        return Spec(tuple(self.store.observation_shape), self.frame_stack, self.store.num_actions)

    @property
    def env_steps(self) -> int:
        """Number of real steps in the training environments of this rank, overwritten steps included."""
        return self.store.rows * (self.store.num_envs - self.store.num_validation_envs)

    @property
    def real_steps(self) -> int:
        """Number of real steps of this rank that the run learned from: `env_steps` and `unstored_steps`."""
        return self.env_steps + self.unstored_steps

    def limit_threads(self, num_threads: int) -> None:
        """Set the number of threads of the environments."""
        self.num_threads = num_threads

    def play_by(self, players: Running) -> None:
        """Replace the collector by other players, which give checkpoints the states of the running episodes."""
        self.__dict__["collector"] = players

    def forget_running(self) -> None:
        """Start new episodes instead of the running episodes of the checkpoint."""
        self.running = None

    def count_unstored(self, steps: int) -> None:
        """Count real steps of this rank that the run learned from without storing them."""
        self.unstored_steps += steps

    # Sampling.

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler that draws windows of the open store."""
        return Sampler(self.store, self.sampling, self.frame_stack, generator(self.rank, "replay", self.seed))

    def training_batch(self) -> dict[str, Batch]:
        """Draw {"real": (B, T)}, and {"model": (B', T')} if the world model has windows of its own."""
        batch = {"real": self.sample(events=self.sampling.events)}
        if self.sampling.world_model is not None:
            batch["model"] = self.sampler.sample_for_model(self.sampling.world_model)
        return batch

    def sample(
        self,
        batch_size: int | None = None,
        sequence_length: int | None = None,
        envs: Literal["training", "validation"] = "training",
        source: np.random.Generator | None = None,
        recent: int | None = None,
        events: float = 0.0,
    ) -> Batch:
        """Draw windows by `Sampler.sample`."""
        return self.sampler.sample(batch_size, sequence_length, envs, source, recent, events)

    def update_priorities(self, batch: Batch, priority: Tensor) -> None:
        """Set the priorities (B,) of the windows of a batch by `Sampler.update_priorities`."""
        self.sampler.update_priorities(batch, priority)

    def episode_starts(self, num: int, sequence_length: int) -> Batch | None:
        """Draw windows that begin with an episode by `Sampler.episode_starts`."""
        return self.sampler.episode_starts(num, sequence_length)

    def validation_windows(self, sequence_length: int, num_windows: int) -> Batch:
        """Return evenly spaced held-out windows by `Sampler.validation_windows`."""
        return self.sampler.validation_windows(sequence_length, num_windows)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device; skip a batch that is there, since traversing it costs as much as callbacks."""
        if all(rows.action.device == device for rows in batch.values()):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> DataLoader:
        """Return endless batches {"real": (B, T)}, without workers: they would copy the store and freeze its head."""
        if self.sampling.recent is not None and self.trainer and not isinstance(self.trainer.limit_train_batches, int):
            raise UserError(
                "data.sampling.recent needs a whole number for trainer.limit_train_batches: Lightning draws ahead"
            )
        if self.store.rows == 0:
            raise UserError(
                f"{self.store.path} holds no rows yet: the callback Collect plays them, or data.path reads them"
            )
        return DataLoader(Windows(self), batch_size=None, num_workers=0)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return batches of held-out windows, equal for an equal store; an empty list without validation environments.

        Raises:
            UserError: the store has no validation environments, and the run only measures.
        """
        measures = self.trainer is not None and self.trainer.state.fn != "fit"
        if self.store.num_validation_envs == 0 and not measures:
            return []
        self.sampler.require_validation()
        return DataLoader(Windows(self, self.sampling.validation_batches), batch_size=None, num_workers=0)

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the batches of `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the batches of `val_dataloader`."""
        return self.val_dataloader()

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy in another process, without anything that this process opened."""
        opened = ("environment", "collector", "sampler", "trainer", "running")
        return {name: value for name, value in self.__dict__.items() if name not in opened} | {"_store": None}

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the cursors, generators, priorities and running episodes of all ranks; rows stay on disk."""
        state = {"rows": self.store.rows, "unstored_steps": self.unstored_steps, **self.sampler.state_dict()}
        collector = self.__dict__.get("collector")  # None too if the resumed run has not played yet
        state["running"] = self.running if collector is None else collector.running()
        return {"ranks": gather(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Cut the store back to the cursor and restore the generator, the priorities and the running episodes.

        Raises:
            UserError: the store no longer holds the rows that it had when the checkpoint was written.
        """
        ranks = state_dict["ranks"]
        state = of_rank(ranks, self.rank)
        self.unstored_steps = state.get("unstored_steps", 0)
        if self.store.writable:
            try:
                self.store.truncate(state["rows"])
            except UserError as error:
                raise UserError(
                    f"{error}, none from before the checkpoint; --init_from begins a new run with its weights"
                ) from None
            running = state.get("running")
            envs = 0 if running is None else sum(len(part["is_first"]) for part in running)
            if len(ranks) > self.rank and envs == self.store.num_envs:
                self.running = running
        self.sampler.load_state_dict(state)

    def teardown(self, stage: str) -> None:
        """Stop the environments and close the store."""
        if "environment" in self.__dict__:
            self.environment.close()
        if self._store is not None:
            self._store.close()
        for name in ("environment", "collector", "sampler"):
            self.__dict__.pop(name, None)
        self._store = None
