"""Base class of Dyna and MBPO: it launches dreams from replayed real states and puts them into batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.ranks import RankGenerator, gather, of_rank
from datamodules.replay.dream_store import DreamStore
from modules.agent import Agent
from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.imagination import imagine
from modules.policies.policy import Policy
from pipelines.callbacks.dreaming.foresight import Foresight, Gate
from pipelines.callbacks.run import Run
from pipelines.dreams.starts import Starts


@dataclass(frozen=True)
class Horizon:
    """Horizon of dreams, which may grow while the model gets better (Janner et al. 2019, appendix C).

    Args:
        start: number of steps of a dream up to `first_update`.
        end: number of steps of a dream from `last_update` on.
        first_update: update at which the horizon begins to change, linearly, from `start` to `end`.
        last_update: update at which the horizon reaches `end`.
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
        """Return the number of steps of a dream that is launched at an update."""
        progress = (update - self.first_update) / (self.last_update - self.first_update)
        return round(self.start + min(1.0, max(0.0, progress)) * (self.end - self.start))


class Dreaming(Callback):
    """Fills a store with dreams of the agent's policy in its world model, and adds dreams to the policy's batches.

    Subclasses decide when dreams are launched, and which of them an update learns from.

    Args:
        horizon: number of steps of a dream, which may change with the updates.
        num_dreams: number of dreams that are launched at a time.
        capacity: number of dreams that are kept.
        starts: real rows that dreams start from.
        foresight: how well rewards must be foreseen before dreams are launched; None launches them always.
    """

    debug: ClassVar[dict[str, Any]] = {"foresight": None}
    """A debug run shows that dreams work, and its model foresees nothing."""

    def __init__(
        self,
        horizon: Horizon,
        num_dreams: int,
        capacity: int,
        starts: Starts,
        foresight: Foresight | None = None,
    ) -> None:
        check_range(f"{type(self).__name__}.num_dreams", num_dreams, 1)
        check_range(f"{type(self).__name__}.capacity", capacity, 1)
        check_range(f"{type(self).__name__}.starts.episode_starts", starts.episode_starts, 0, num_dreams)
        self.horizon = horizon
        self.num_dreams = num_dreams
        self.starts = starts
        self.gate = None if foresight is None else Gate(foresight, type(self).__name__)
        self.store = DreamStore(capacity)
        self.figures: dict[str, float] = {}
        self.counts = {"dreamed_steps": 0, "model_updates": 0, "policy_updates": 0}
        self.rank_generator = RankGenerator("dreams")
        self.restored: list[dict[str, Any]] | None = None

    def launch_due(self, update: int) -> bool:
        """Return whether dreams are launched before this update of the policy."""
        raise NotImplementedError

    def choose(self, real: Batch, policy: Policy) -> Batch:
        """Return the dreams that the policy learns from in this update, besides a real batch."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the agent has a world model to dream in, and that the model can dream for the horizon."""
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
        """Add dreams to the batch if the policy learns in this update, and if the model foresees rewards."""
        assert isinstance(pl_module, Agent)
        run = Run(trainer)
        pl_module.without_dreams = False
        if self.gate is not None and pl_module.turn.policy:
            pl_module.without_dreams = not self.gate.is_open(run, pl_module.world_model)
        turn = pl_module.turn
        self.counts["model_updates"] += turn.model
        self.counts["policy_updates"] += turn.policy
        if pl_module.without_dreams:
            self.forget()
        elif turn.policy:
            if self.launch_due(run.updates):
                with run.precision():
                    self.launch(run, pl_module)
            batch["dream"] = self.choose(batch["real"], pl_module.policy)
        if (turn.policy or pl_module.without_dreams) and run.logs_after(run.updates + 1):
            counts = {name: float(value) for name, value in self.counts.items()}
            pl_module.log_dict(self.figures | self.foresight_figures() | counts, batch_size=1)

    def forget(self) -> None:
        """Drop dreams that were launched before the model's foresight got worse."""
        self.store.drop(self.counts["model_updates"] + 1)

    def foresight_figures(self) -> dict[str, float]:
        """Return the last area under the ROC curve of rewards, if it is measured and known."""
        if self.gate is None or math.isnan(self.gate.auc):
            return {}
        return {"dream/foresight_auc": self.gate.auc}

    def launch(self, run: Run, agent: Agent) -> None:
        """Dream from replayed states, and store the dreams."""
        horizon = self.horizon.at(run.updates)
        states = self.starts.draw(run.data, agent.world_model, self.num_dreams, self.generator)
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

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and the generator and dreams of every rank.

        Dreams are kept because an earlier version of the model made them.
        """
        return {
            "counts": dict(self.counts),
            "generators": self.rank_generator.state_dict(),
            "dreams": gather(self.store.state_dict()),
            **({} if self.gate is None else {"foresight": self.gate.state_dict()}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters, and keep dreams and generators until the run starts."""
        self.counts = state_dict["counts"]
        self.restored = state_dict["dreams"]
        self.rank_generator.load_state_dict(state_dict["generators"])
        if self.gate is not None and "foresight" in state_dict:
            self.gate.load_state_dict(state_dict["foresight"])
