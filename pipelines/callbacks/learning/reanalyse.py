"""Searches replayed positions again with newer networks (MuZero Reanalyse)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.ranks import RankGenerator
from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import evaluating
from modules.latents.muzero import MuZero
from pipelines.callbacks.run import Run
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.graphed import Graphed
from pipelines.search.search import Search


class Reanalyse(Callback):
    """Gives a fraction of every batch's windows fresh `search_policy` and `root_value` (Schrittwieser et al. 2021).

    The target network searches all rows that targets need in one batch: the unrolled rows, or every row if MuZero
    bootstraps from the root values of the search. The store keeps the first results.

    Args:
        fraction: fraction of the windows of a batch that is searched again; 1 learns from fresh targets alone.
        search: settings of the search; targets are best without noise at the root.
    """

    def __init__(self, fraction: float, search: Search) -> None:
        if not 0 < fraction <= 1:
            raise UserError(f"reanalyse.fraction must be above 0 and at most 1: got {fraction}")
        self.fraction = fraction
        self.search = search
        self.searched = 0
        """Number of positions that were searched."""
        self.rank_generator = RankGenerator("reanalyse")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the model is a MuZero and that its discount equals that of the search."""
        if not isinstance(pl_module, MuZero):
            raise UserError(
                f"Reanalyse needs a model that learns from searches, MuZero: got {type(pl_module).__name__}"
            )
        self.search = self.search.discounting_as(pl_module)
        if self.search.discount != pl_module.discount:
            raise UserError(
                f"the discount of the search is {self.search.discount}, that of the model {pl_module.discount}: "
                "set it to null, which takes the model's"
            )
        self.generator = self.rank_generator.start(trainer.global_rank)
        self.networks = pl_module.target_networks
        self.evaluate = NetworkEvaluator(self.networks, self.networks.policy)
        self.expand = Graphed(self.networks, self.evaluate)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> None:
        """Replace old search results in the batch by those of a new search."""
        assert isinstance(pl_module, MuZero)
        run = Run(trainer)
        with run.precision():
            batch["real"] = self.reanalyse(pl_module, batch["real"])
        if run.logs_after(run.updates + 1):
            pl_module.log("reanalysed", float(self.searched), batch_size=1)

    @torch.no_grad()
    def reanalyse(self, model: MuZero, batch: Batch) -> Batch:
        """Return the batch with fresh extras in its first windows; the order of the windows is random."""
        assert batch.observation is not None
        windows = max(1, round(self.fraction * batch.shape[0]))
        rows = batch.shape[1] if model.targets.bootstrap == "root_value" else model.targets.unroll + 1
        with evaluating(self.networks):
            roots = self.networks.represent(batch.observation[:windows, :rows].flatten(0, 1))
            found = self.search.run(roots, None, self.evaluate, generator=self.generator, expand=self.expand)
        self.searched += windows * rows

        def refreshed(name: str, values: np.ndarray) -> Tensor:
            column = batch.extras[name].clone()
            fresh = torch.from_numpy(np.ascontiguousarray(values)).to(column)
            column[:windows, :rows] = fresh.unflatten(0, (windows, rows))
            return column

        fresh = {"search_policy": refreshed("search_policy", found.policy)}
        if model.targets.bootstrap == "root_value":
            fresh["root_value"] = refreshed("root_value", found.value)
        return batch.replace(extras=batch.extras | fresh)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of searched positions and the states of every rank's generator."""
        return {"searched": self.searched, "generators": self.rank_generator.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count, and remember the states of the generators until the run starts."""
        self.searched = state_dict["searched"]
        self.rank_generator.load_state_dict(state_dict["generators"])
