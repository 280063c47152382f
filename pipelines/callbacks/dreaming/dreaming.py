"""Launching imagination from replayed real states: what Dyna and MBPO share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.ranks import RankGenerator, gather, of_rank
from datamodules.replay.dream_store import DreamStore
from datamodules.replay_data import ReplayData
from modules.agent import Agent
from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import evaluating, imagine
from modules.world_model import WorldModel
from pipelines.callbacks.run import Run


@dataclass(frozen=True)
class Horizon:
    """Length of dreams, which may grow as the model gets better (Janner et al. 2019, appendix C).

    Args:
        start: steps at first.
        end: steps at last.
        first_update: update up to which it stays at `start`.
        last_update: update from which on it is `end`; linear in between.
    """

    start: int = 5
    end: int = 5
    first_update: int = 0
    last_update: int = 1

    def __post_init__(self) -> None:
        if min(self.start, self.end) < 1 or self.last_update <= self.first_update:
            raise UserError(
                f"a dream's horizon needs start and end of at least 1 step and first_update < last_update: got {self}"
            )

    def at(self, update: int) -> int:
        """Return the steps of a dream launched at an update."""
        progress = (update - self.first_update) / (self.last_update - self.first_update)
        return round(self.start + min(1.0, max(0.0, progress)) * (self.end - self.start))


class Dreaming(Callback):
    """Fills a store with dreams of the agent's policy in its world model, and puts some into every batch.

    Subclasses say when dreams are launched and which of them an update learns from.

    Args:
        horizon: steps of a dream.
        num_dreams: launched at a time.
        capacity: dreams that are kept.
        recent: dreams start from the last so many rows of each environment only; null starts anywhere in the store.
        context: rows that the model observes before a dream starts from the last of them.
        openings: of the dreams launched at a time, how many start where an episode opens.
    """

    def __init__(
        self,
        horizon: Horizon,
        num_dreams: int,
        capacity: int,
        recent: int | None,
        context: int,
        episode_starts: int,
    ) -> None:
        if min(num_dreams, capacity, context) < 1 or not 0 <= episode_starts <= num_dreams:
            raise UserError(
                "dreams need num_dreams, capacity and context of at least 1, and openings from 0 to num_dreams: "
                f"got {num_dreams}, {capacity}, {context} and {episode_starts}"
            )
        if recent is not None and recent <= context:
            # Of two rows in a row one at most closes an episode: there is always a start.
            raise UserError(f"recent must be more than the {context} rows of context: got {recent}")
        self.horizon = horizon
        self.num_dreams = num_dreams
        self.recent = recent
        self.context = context
        self.episode_starts = episode_starts
        self.store = DreamStore(capacity)
        self.figures: dict[str, float] = {}
        self.counts = {"dreamed_steps": 0, "model_updates": 0, "policy_updates": 0}
        self.rank_generator = RankGenerator("dreams")
        self.restored: list[dict[str, Any]] | None = None

    def launch_due(self, update: int) -> bool:
        """Return whether dreams must be launched before an update of the policy."""
        raise NotImplementedError

    def choose(self, real: Batch) -> Batch:
        """Return the dreams that this update of the policy learns from."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is somebody to dream, and for how long."""
        name = type(self).__name__
        if not isinstance(pl_module, Agent):
            raise UserError(f"{name} needs a model of class modules.agent.Agent: got {type(pl_module).__name__}")
        model = pl_module.world_model
        if pl_module.policy_learns_from == "real" or not {"step", "reward"} <= model.capabilities:
            raise UserError(
                f"{name} needs a world model to dream in and policy_learns_from of dream or both: "
                f"got {type(model).__name__} and {pl_module.policy_learns_from}"
            )
        model.check_horizon(max(self.horizon.start, self.horizon.end))
        self.generator = self.rank_generator.start(trainer.global_rank)
        if self.restored is not None:
            self.store.load_state_dict(of_rank(self.restored, trainer.global_rank), pl_module.device)
            self.restored = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> None:
        """Put dreams into the batch where it is the policy's turn."""
        assert isinstance(pl_module, Agent)
        run, turn = Run(trainer), pl_module.turn
        self.counts["model_updates"] += turn.model
        if not turn.policy:
            return
        self.counts["policy_updates"] += 1
        if self.launch_due(run.updates):
            with run.precision():
                self.launch(run, pl_module)
        batch["dream"] = self.choose(batch["real"])
        if run.logs_after(run.updates + 1):
            counts = {name: float(value) for name, value in self.counts.items()}
            pl_module.log_dict(self.figures | counts, batch_size=1)

    def launch(self, run: Run, agent: Agent) -> None:
        """Dream from replayed states, and keep it."""
        horizon = self.horizon.at(run.updates)
        states = self.starts(run.data, agent)
        dreams = imagine(agent.world_model, agent.policy, states, horizon)
        self.store.append(dreams, version=self.counts["model_updates"])
        self.counts["dreamed_steps"] += dreams.action.numel() - len(states)
        survival = dreams.continuation[:, :-1].cumprod(dim=1)
        reached = torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], dim=1)
        self.figures = {
            "dream/horizon": float(horizon),
            "dream/effective_horizon": float(reached.sum(dim=1).mean()),
            "dream/return": float((reached * dreams.reward[:, :-1]).sum(dim=1).mean()),
        }

    def starts(self, data: ReplayData, agent: Agent) -> torch.Tensor:
        """Return states (num_dreams, *state_shape) that dreams start from."""
        model = agent.world_model
        return starts(data, model, self.num_dreams, self.context, self.episode_starts, self.recent, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Keep the counters, every rank's generator and its dreams: those of older models cannot be dreamed anew."""
        return {
            "counts": dict(self.counts),
            "generators": self.rank_generator.state_dict(),
            "dreams": gather(self.store.state_dict()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, and remember the generators until the run starts."""
        self.counts = state_dict["counts"]
        self.restored = state_dict["dreams"]
        self.rank_generator.load_state_dict(state_dict["generators"])


def starts(
    data: ReplayData,
    model: WorldModel,
    num: int,
    context: int,
    episode_starts: int,
    recent: int | None,
    source: np.random.Generator,
) -> torch.Tensor:
    """Return states (num, *state_shape) that real rows led to, none of which closes an episode.

    Args:
        data: the datamodule.
        model: observes the rows.
        num: dreams.
        context: rows that the model observes.
        openings: of the dreams, how many start where an episode opens, as far as there are such.
        recent: start from the last so many rows of each environment only; null starts anywhere in the store.
        source: of the draws.
    """
    wanted = num
    rows = data.episode_starts(episode_starts, context) if episode_starts else None
    chosen = []
    while wanted:
        if rows is None:
            rows = data.sample(2 * wanted, context, source=source, recent=recent or 0)
        rows = rows.to(model.device)
        with torch.no_grad(), evaluating(model):
            states = model.encode(rows)[:, -1]
        chosen.append(states[~rows.is_last[:, -1]][:wanted])
        wanted -= len(chosen[-1])
        rows = None
    return torch.cat(chosen)
