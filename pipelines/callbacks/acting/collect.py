"""The callback that plays real steps between updates."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.acting import Actor
from datamodules.collector import Collector
from datamodules.ranks import gather, generator, of_rank
from modules.errors import UserError, check_range
from modules.learner import Learner
from pipelines.acting.play import Play, RandomPlay, Stage, usual
from pipelines.acting.players import CollectChunk, LocalPlayers, Players
from pipelines.callbacks.acting.ray_actors import RayActors
from pipelines.callbacks.progress import last_update, share_done
from pipelines.callbacks.run import Run
from pipelines.display.progress import counter

CHUNK_ROWS = 64
"""Rows per environment that `Collect` requests at once."""


class Collect(Callback):
    """Plays the datamodule's environments: `prefill` steps first, then a fixed number of steps per update.

    Steps are counted in the training environments of one rank. The callback does nothing if the datamodule reads an
    existing store.

    Args:
        prefill: real steps before the first update, limited to the capacity of the store.
        steps_per_update: average number of real steps per update after the prefill; 0 plays only the prefill. It is
            the inverse of the replay ratio: 0.5 makes two updates per real step, with any number of environments.
        steps_per_round: real steps at the start of every round except the first.
        limit: number of real steps after which collection stops while updates continue; null sets no limit.
        actor: actor after the prefill; null takes the policy of the trained agent or MuZero, and plays at random if
            there is no policy.
        prefill_actor: actor during the prefill; null takes the actor that plays afterwards.
    """

    debug: ClassVar[dict[str, Any]] = {"steps_per_round": 512}

    def __init__(
        self,
        prefill: int,
        steps_per_update: float = 0.0,
        steps_per_round: int = 0,
        limit: int | None = None,
        actor: Play | None = None,
        prefill_actor: Play | None = RandomPlay(),
    ) -> None:
        check_range("Collect.prefill", prefill, 1)
        check_range("Collect.steps_per_update", steps_per_update, 0)
        check_range("Collect.steps_per_round", steps_per_round, 0)
        check_range("Collect.limit", limit, 1)
        self.prefill = prefill
        self.steps_per_update = steps_per_update
        self.steps_per_round = steps_per_round
        self.limit = limit
        self.actor = actor
        self.prefill_actor = prefill_actor
        self.players: Players | None = None
        self.actor_states: list[list[dict[str, Any]] | None] = [None]

    @property
    def wants_clones(self) -> bool:
        """Whether an actor plans from clones of the environments; the datamodule then makes such environments."""
        return any(play is not None and play.wants_clones for play in (self.actor, self.prefill_actor))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play the prefill, or the steps that a resumed run still lacks, before the first batch is drawn."""
        run = Run(trainer)
        data = run.data
        if not run.store.writable:
            self._tell(run, data.env_steps * trainer.world_size)  # nobody explores: what the store holds was played
            return
        self.start = min(self.prefill, data.storage.capacity)
        if self.steps_per_update > data.storage.capacity:
            raise UserError(
                f"Collect.steps_per_update is {self.steps_per_update:g}, but the store keeps "
                f"{data.storage.capacity} rows: most would be gone before an update"
            )
        num_envs, length = data.envs.training, data.sampling.longest
        needed = num_envs * length
        limits = {
            "a prefill": self.prefill,
            "data.storage.capacity": data.storage.capacity,
            "Collect.limit": self.limit,
        }
        for name, steps in limits.items():
            if steps is not None and steps < needed:
                raise UserError(
                    f"{name} of {steps} steps is fewer than a window needs: {num_envs} environments times {length} "
                    f"rows are {needed}"
                )
        away = next((callback for callback in trainer.callbacks if isinstance(callback, RayActors)), None)  # type: ignore[attr-defined]
        parts = 1 if away is None else away.num_actors
        learner = run.learner if away is None else away.copy(run.learner)
        actors = [self._actors(run, learner, part) for part in range(parts)]
        states = self._restore(run, actors)
        if away is None:
            assert isinstance(data.collector, Collector)
            self.players = LocalPlayers(data.collector, actors[0])
        else:
            self.players = away.players(run, learner, actors, states)
        self._collect(run, show=True)

    def _restore(self, run: Run, actors: list[dict[str, Actor]]) -> list[dict[str, Any]] | None:
        """Restore the actors of every part and return their states; None if the running episodes are dropped.

        Running episodes continue only if the checkpoint has the same number of parts.
        """
        kept = of_rank(self.actor_states, run.rank)
        if kept is None or len(kept) != len(actors):
            run.data.forget_running()
        running = run.data.running is not None
        for part, states in zip(actors, kept or [], strict=False):
            for name, actor in part.items():
                state = states[name]
                draws = {key: value for key, value in state.items() if key.endswith("generator")}
                actor.load_state_dict(state if running else draws)
        return kept if running else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play the real steps that a resumed run still owes; its number of updates is known only now."""
        run = Run(trainer)
        if run.store.writable:
            self._collect(run)

    def _actors(self, run: Run, learner: Learner, part: int) -> dict[str, Actor]:
        """Return the actors of one part of the environments: "prefill" and "play"."""

        def source(name: str) -> np.random.Generator:
            return generator(run.rank, f"{name}{part or ''}")

        data, policy = run.data, learner.policy
        stage = Stage(data.environment, source, learner.world_model, policy)
        alone = self.actor is None and policy is None  # random play then goes on as the prefill began
        play = (self.prefill_actor or RandomPlay()) if alone else self.actor or usual(policy)
        if unknown := [name for name in data.storage.extras if name not in play.columns]:
            raise UserError(
                f"data.storage.extras: the actor writes no column {unknown[0]}; a policy writes log_prob and value, a "
                "search writes search_policy and root_value"
            )
        if missing := [name for name in data.storage.extras if name not in (self.prefill_actor or play).columns]:
            raise UserError(
                f"the actor of the prefill does not write {', '.join(missing)}: set prefill_actor of Collect to null"
            )
        actor = play.actor(stage)
        prefill = actor if self.prefill_actor in (None, play) else self.prefill_actor.actor(stage)  # type: ignore[union-attr]
        return {"prefill": prefill, "play": actor}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Play the real steps that are due after this update."""
        run = Run(trainer)
        # No update would learn from steps after the last one; a resumed run plays them first.
        if run.store.writable and not run.is_over:
            self._collect(run)
        if run.logs_after(run.updates):
            pl_module.log("env_steps", float(run.data.env_steps), prog_bar=self.steps_per_update > 0, batch_size=1)

    def _target(self, updates: int, learner: Learner) -> float:
        """Return the number of real steps that are due after `updates` updates."""
        rounds = learner.rounds.at(updates).number
        target = self.start + self.steps_per_update * updates + self.steps_per_round * rounds
        return target if self.limit is None else min(target, self.limit)

    def _collect(self, run: Run, show: bool = False) -> None:
        data, store, trainer = run.data, run.store, run.trainer
        num_envs, last = data.envs.training, last_update(trainer)
        assert self.players is not None

        def plan(updates: int) -> list[CollectChunk]:
            """Return the chunks that fill the store up to the rows that are due after `updates` updates."""
            if last is not None and last <= updates and updates > run.updates:
                return []
            target = self._target(updates, run.learner)
            rows, due = store.rows, math.ceil(target / num_envs)
            if due <= rows:
                return []
            prefill = math.ceil(min(self.start, target) / num_envs)
            progress = share_done(trainer, updates)
            ends = [end for end in sorted({*range(rows + CHUNK_ROWS, due, CHUNK_ROWS), prefill, due}) if end > rows]
            return [
                CollectChunk("prefill" if end <= prefill else "play", end, progress, self._played(run, begin))
                for begin, end in zip([rows, *ends], ends, strict=False)
            ]

        self.players.ask(run.updates, plan)
        if not (chunks := plan(run.updates)):
            self._tell(run, self._played(run, store.rows))
            return
        steps = num_envs * (chunks[-1].rows - store.rows)
        with counter(f"playing {data.name}", steps, "steps", show and run.is_first) as advance, run.precision():
            for chunk in chunks:
                for rows in self.players.play(chunk):
                    advance(rows * num_envs)
                    if trainer.received_sigterm:
                        raise SIGTERMException
        self._tell(run, self._played(run, store.rows))
        if returns := self.players.returns():
            run.log({"collect/return": float(np.mean(returns))})

    def _played(self, run: Run, rows: int) -> int:
        """Return the number of real steps after the prefill, of all ranks together, at a number of rows."""
        num_envs = run.data.envs.training
        return max(0, rows - math.ceil(self.start / num_envs)) * num_envs * run.trainer.world_size

    @staticmethod
    def _tell(run: Run, real_steps: int) -> None:
        """Tell the policy how many real steps were played, which its schedules depend on."""
        if run.learner.policy is not None:
            run.learner.policy.real_steps = real_steps

    def state_dict(self) -> dict[str, Any]:
        """Return the states of every rank's actors."""
        return {"actors": gather(None if self.players is None else self.players.actor_states())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states of the actors until the run starts."""
        self.actor_states = state_dict["actors"]
