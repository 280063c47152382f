"""Searches replayed positions again with newer networks (MuZero Reanalyse)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.ranks import RankGenerator, gather, of_rank
from datamodules.replay.row_table import RowTable
from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import evaluating
from modules.latents.muzero import MuZero
from pipelines.callbacks.run import Run
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.graphed import Graphed
from pipelines.search.search import Search

SMALLEST = 64
"""Smallest number of roots that a GPU searches at once; larger numbers are rounded up to powers of two."""


class Reanalyse(Callback):
    """Gives a fraction of every batch's windows fresh `search_policy` and `root_value` (Schrittwieser et al. 2021).

    The target network searches all rows that targets need in one batch: the unrolled rows, or every row if MuZero
    bootstraps from the root values of the search. The store keeps the first results.

    Args:
        fraction: fraction of the windows of a batch that is searched again; 1 learns from fresh targets alone.
        search: settings of the search; targets are best without noise at the root.
        reuse: search a stored row only once per copy of the target network, and keep the result for all windows with
            this row; values to bootstrap from are kept in the same way. Needs data.sampling.prioritised.
    """

    def __init__(self, fraction: float, search: Search, reuse: bool = False) -> None:
        if not 0 < fraction <= 1:
            raise UserError(f"reanalyse.fraction must be above 0 and at most 1: got {fraction}")
        self.fraction = fraction
        self.search = search
        self.reuse = reuse
        self.searched = 0
        """Number of positions that were searched."""
        self.rank_generator = RankGenerator("reanalyse")
        self.tables: dict[str, RowTable] = {}
        """Results of searches, and values, by stored row."""
        self.restored: list[dict[str, Any]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the model is a MuZero, its discount, and that rows can be told apart if results are reused."""
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
        if self.reuse:
            run = Run(trainer)
            if not pl_module.target_every or run.data.sampling.prioritised is None:
                raise UserError(
                    "Reanalyse.reuse needs model.target_every above 0, since results are kept until the target network "
                    "changes, and data.sampling.prioritised, with alpha 0 if need be, which names the rows"
                )
            self.tables = {name: RowTable(run.store.num_envs, run.store.capacity) for name in ("search", "value")}
            for name, state in (of_rank(self.restored, run.rank) if self.restored else {}).items():
                self.tables[name].load_state_dict(state, pl_module.device)
            self.restored = None

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
        by_root_value = model.targets.bootstrap == "root_value"
        length = batch.shape[1] if by_root_value else model.targets.unroll + 1
        chosen = torch.zeros(batch.shape, dtype=torch.bool, device=batch.action.device)
        chosen[:windows, :length] = True
        extras = dict(batch.extras)
        fresh = self._results("search", model, batch, chosen, self._search)
        for name in ("search_policy", *(["root_value"] if by_root_value else [])):
            extras[name] = extras[name].clone()
            extras[name][chosen] = fresh[name].to(extras[name])
        if self.reuse and not by_root_value:
            ends = model.bootstrap_rows(batch)
            values = self._results("value", model, batch, ends, lambda seen: {"value": model.bootstrap_values(seen)})
            extras["target_value"] = torch.zeros(batch.shape, device=chosen.device)
            extras["target_value"][ends] = values["value"].float()
        return batch.replace(extras=extras)

    def _results(
        self, name: str, model: MuZero, batch: Batch, chosen: Tensor, compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the results (N, ...) of the chosen rows, from the table where it has them."""
        assert batch.observation is not None
        if not self.reuse:
            return compute(batch.observation[chosen])
        table, version = self.tables[name], self._version(model)
        env, row = (batch.extras[key][chosen].cpu().numpy() for key in ("env", "row"))
        missing = table.missing(env, row, version)
        if len(missing):
            found = compute(batch.observation[chosen][torch.from_numpy(missing).to(chosen.device)])
            table.put(env[missing], row[missing], version, **found)
        return {key: table.get(key, env, row) for key in table.names}

    def _search(self, observations: Tensor) -> dict[str, Tensor]:
        """Search from observations (N, ...) and return policies and values of the roots."""
        num = len(observations)
        if self.reuse and observations.device.type == "cuda":  # graphs are recorded by size: few sizes, few graphs
            size = max(SMALLEST, 1 << (num - 1).bit_length())
            observations = torch.cat([observations, observations[-1:].expand(size - num, *observations.shape[1:])])
        with evaluating(self.networks):
            roots = self.networks.represent(observations)
            found = self.search.run(roots, None, self.evaluate, generator=self.generator, expand=self.expand)
        self.searched += num
        results = {"search_policy": found.policy, "root_value": found.value}
        return {
            name: torch.from_numpy(np.ascontiguousarray(values[:num])).to(roots.device, torch.float32)
            for name, values in results.items()
        }

    def _version(self, model: MuZero) -> int:
        """Return how often the target network was copied."""
        return model.updates // model.target_every

    def state_dict(self) -> dict[str, Any]:
        """Return the count, the states of every rank's generator, and every rank's newest results by row."""
        tables = {name: table.state_dict() for name, table in self.tables.items()}
        kept = {"tables": gather(tables)} if self.reuse else {}
        return {"searched": self.searched, "generators": self.rank_generator.state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count, and remember generators and results until the run starts."""
        self.searched = state_dict["searched"]
        self.rank_generator.load_state_dict(state_dict["generators"])
        self.restored = state_dict.get("tables")
