"""Real steps between updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.collector import Actor
from datamodules.ranks import gather, generator
from modules.agent import Agent, policy_of, world_model
from modules.errors import UserError
from pipelines.acting.actors import PolicyActor, RandomActor, SearchActor
from pipelines.acting.players import CollectChunk, LocalPlayers, Players
from pipelines.callbacks.acting.ray_actors import RayActors
from pipelines.callbacks.progress import part_of_run
from pipelines.display.progress import counter
from pipelines.search.search import Search

CHUNK_ROWS = 64
"""Rows of an environment that are asked for at once."""


class Collect(Callback):
    """Plays the datamodule's environments: `prefill` steps first, then a pinned number of steps per update.

    An agent's own policy plays as soon as it learns; a world model alone is given random play. Steps are counted in the
    training environments of one rank. It stands still where the datamodule reads an existing store.

    Args:
        prefill: real steps before the first update; no more than the store keeps.
        steps_per_update: real steps per update from then on, on average; 0 stops after the prefill.
        steps_per_round: real steps of an agent at the start of each of its rounds but the first.
        limit: real steps after which it stands still, and updates go on without.
        random_prefill: play the prefill at random; false lets the untrained policy play it.
        random_persistence: random play holds its actions, for n steps with a probability of n to the minus so much
            (Dabney et al. 2021): it gets further than actions that cancel out. Null draws every action anew.
        search: plan every move of an agent, or of a world model that has a policy of its own, such as MuZero. What the
            search finds may be kept in the columns search_policy and root_value.
        temperatures: of the moves drawn by visits, one for each of as many equal parts of the run.
    """

    def __init__(
        self,
        prefill: int,
        steps_per_update: float = 0.0,
        steps_per_round: int = 0,
        limit: int | None = None,
        random_prefill: bool = True,
        random_persistence: float | None = None,
        search: Search | None = None,
        temperatures: Sequence[float] = (1.0,),
    ) -> None:
        if not temperatures or min(temperatures) < 0:
            raise UserError(f"collect needs temperatures of at least 0: got {list(temperatures)}")
        if prefill < 1 or min(steps_per_update, steps_per_round) < 0:
            raise UserError(
                "collect needs prefill >= 1, steps_per_update >= 0 and steps_per_round >= 0: "
                f"got {prefill}, {steps_per_update} and {steps_per_round}"
            )
        self.prefill = prefill
        self.steps_per_update = steps_per_update
        self.steps_per_round = steps_per_round
        self.limit = limit
        self.random_prefill = random_prefill
        self.random_persistence = random_persistence
        self.search = search
        self.temperatures = temperatures
        self.players: Players | None = None
        self.actor_states: list[list[dict[str, Any]] | None] = [None]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the store up to where a run of so many updates should be, before the first batch is drawn."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not data.store.writable:
            return
        self.start = min(self.prefill, data.capacity)
        needed = data.num_envs * data.sequence_length
        if self.start < needed:
            raise UserError(
                f"a prefill of {self.start} steps is fewer than a window needs: {data.num_envs} environments times "
                f"{data.sequence_length} rows are {needed}"
            )
        away = next((callback for callback in trainer.callbacks if isinstance(callback, RayActors)), None)  # type: ignore[attr-defined]
        parts = 1 if away is None else away.num_actors
        module = pl_module if away is None else away.copy(pl_module)
        actors = [self._actors(trainer, module, data, part) for part in range(parts)]
        states = self._restore(trainer, data, actors)
        if away is None:
            self.players = LocalPlayers(data.collector, actors[0])
        else:
            self.players = away.players(trainer, pl_module, module, actors, states)
        self._collect(trainer, pl_module, show=True)

    def _restore(self, trainer: Trainer, data: Any, actors: list[dict[str, Actor]]) -> list[dict[str, Any]] | None:
        """Let every part's actors go on, with its episodes if they are those of as many parts: return their states."""
        kept = self.actor_states[trainer.global_rank % len(self.actor_states)]
        if kept is None or len(kept) != len(actors):
            data.running = None
        for part, states in zip(actors, kept or [], strict=False):
            for name, actor in part.items():
                state = states[name]
                actor.load_state_dict(state if data.running is not None else {"generator": state["generator"]})
        return None if data.running is None else kept

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch up, where a run that stopped goes on: only now its updates are known."""
        if trainer.datamodule.store.writable:  # type: ignore[attr-defined]
            self._collect(trainer, pl_module)

    def _actors(self, trainer: Trainer, pl_module: LightningModule, data: Any, part: int) -> dict[str, Actor]:
        """Return who plays the prefill in a part of the environments, and who plays from then on."""

        def source(name: str) -> np.random.Generator:
            return generator(trainer.global_rank, f"{name}{part or ''}")

        actor: Actor = RandomActor(data.environment.num_actions, source("actor"), self.random_persistence)
        prefill, columns = actor, set()
        if self.search is not None:
            policy = policy_of(pl_module)
            actor = SearchActor(world_model(pl_module), policy, self.search, source("search"))
            columns = {"search_policy", "root_value"}
        elif isinstance(pl_module, Agent):
            actor = PolicyActor(pl_module.world_model, pl_module.require_policy(), source("policy"))
            columns = {"log_prob", "value"}
        if unknown := [name for name in data.extras if name not in columns]:
            raise UserError(
                f"data.extras: nobody leaves a column {unknown[0]}; a policy's are log_prob and value, a search's are "
                "search_policy and root_value"
            )
        if self.random_prefill and data.extras:
            raise UserError(
                f"the columns {', '.join(data.extras)} are left by who plays: set random_prefill of Collect to false"
            )
        return {"prefill": prefill if self.random_prefill else actor, "play": actor}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Catch up with the updates."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Nothing would learn from what is played after the last update; a run that goes on starts with it.
        if data.store.writable and trainer.global_step != trainer.max_steps:
            self._collect(trainer, pl_module)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("env_steps", float(data.env_steps), prog_bar=self.steps_per_update > 0, batch_size=1)

    def _target(self, updates: int, pl_module: LightningModule) -> float:
        """Return the real steps that should be there after so many updates."""
        rounds = pl_module.rounds.at(updates).number if isinstance(pl_module, Agent) else 0
        target = self.start + self.steps_per_update * updates + self.steps_per_round * rounds
        return target if self.limit is None else min(target, self.limit)

    def _collect(self, trainer: Trainer, pl_module: LightningModule, show: bool = False) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        num_envs = data.num_envs
        assert self.players is not None

        def plan(updates: int) -> list[CollectChunk]:
            """Return what brings the store from its present rows to those that are due after so many updates."""
            if 0 < trainer.max_steps <= updates and updates > trainer.global_step:
                return []
            target = self._target(updates, pl_module)
            rows, due = data.store.rows, math.ceil(target / num_envs)
            if due <= rows:
                return []
            prefill = math.ceil(min(self.start, target) / num_envs)
            part = part_of_run(trainer, updates, len(self.temperatures))
            ends = {*range(rows + CHUNK_ROWS, due, CHUNK_ROWS), prefill, due}
            return [
                CollectChunk("prefill" if end <= prefill else "play", end, self.temperatures[part])
                for end in sorted(ends)
                if end > rows
            ]

        self.players.ask(trainer.global_step, plan)
        if not (chunks := plan(trainer.global_step)):
            return
        steps = num_envs * (chunks[-1].rows - data.store.rows)
        with (
            counter(f"playing {data.name}", steps, "steps", show and trainer.is_global_zero) as advance,
            trainer.precision_plugin.forward_context(),
        ):
            for chunk in chunks:
                for rows in self.players.play(chunk):
                    advance(rows * num_envs)
                    if trainer.received_sigterm:
                        raise SIGTERMException
        if returns := self.players.returns():
            self._log_returns(trainer, returns)

    def _log_returns(self, trainer: Trainer, returns: list[float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"collect/return": float(np.mean(returns))}, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Keep every rank's actors."""
        return {"actors": gather(None if self.players is None else self.players.actor_states())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember them until the run starts."""
        self.actor_states = state_dict["actors"]
