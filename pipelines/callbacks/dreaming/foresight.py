"""Dreams only if rewards are foreseen: a bound that `Dyna` and `Mbpo` check before they launch dreams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from datamodules.ranks import gather
from datamodules.replay.store import ReplayStore
from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.world_model import WorldModel
from pipelines.callbacks.run import Run
from pipelines.dreams.foresight import foresee, judge


@dataclass(frozen=True)
class Foresight:
    """How well the world model must foresee rewards before a policy learns from its dreams.

    It is measured on validation environments, or without any on the newest rows of the training environments.

    Args:
        auc: smallest area under the ROC curve of rewards; 0.5 is chance, 1 is perfect.
        horizon: number of steps ahead at which predicted rewards are evaluated.
        context: number of rows that the model observes before it predicts.
        windows: largest number of windows that are evaluated; up to half of them end in a reward.
        recent: number of newest rows per environment that windows are taken from.
        every: number of updates between two measurements.
    """

    auc: float = 0.8
    horizon: int = 1
    context: int = 2
    windows: int = 256
    recent: int = 5000
    every: int = 100

    def __post_init__(self) -> None:
        check_range("foresight.auc", self.auc, 0, 1)
        check_range("foresight.horizon", self.horizon, 1)
        check_range("foresight.context", self.context, 1)
        check_range("foresight.windows", self.windows, 2)
        check_range("foresight.every", self.every, 1)
        if self.recent <= self.context + self.horizon:
            raise UserError(
                f"foresight.recent must be more than context + horizon, {self.context + self.horizon} rows: "
                f"got {self.recent}"
            )


class Gate:
    """Measures the foresight of a world model now and then, and tells whether it suffices.

    Args:
        bound: foresight that is needed.
        caller: name of the callback that waits for it.
    """

    def __init__(self, bound: Foresight, caller: str) -> None:
        self.bound, self.caller = bound, caller
        self.auc = math.nan
        """The last area under the ROC curve; nan if it is not known."""
        self.measured_at = -1
        self.said = False

    def is_open(self, run: Run, model: WorldModel) -> bool:
        """Return whether the foresight suffices, after a measurement if one is due; say once that it does not."""
        if self.measured_at < 0 or run.updates >= self.measured_at + self.bound.every:
            self.auc, self.measured_at = self.measure(run, model), run.updates
        suffices = self.auc >= self.bound.auc
        if not suffices and not self.said:
            self.said = True
            if run.is_first:
                found = "no reward to foresee" if math.isnan(self.auc) else f"an AUC of {self.auc:.2f}"
                Console().print(
                    f"{self.caller} launches no dreams before rewards are foreseen, foresight.auc of "
                    f"{self.bound.auc:g}: found {found} at update {run.updates}",
                    soft_wrap=True,
                )
        return suffices

    def measure(self, run: Run, model: WorldModel) -> float:
        """Return the area under the ROC curve of rewards, the mean of all ranks; nan without rewards."""
        windows = self.windows(run.store, run.data.frame_stack)
        auc = math.nan
        if windows is not None:
            with run.precision():
                outcomes = foresee(model, windows.to(model.device), self.bound.context)
            auc = judge(outcomes, slice(self.bound.horizon - 1, self.bound.horizon))["reward_auc"]
        known = [value for value in gather(auc) if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def windows(self, store: ReplayStore, frame_stack: int) -> Batch | None:
        """Return windows whose judged row brings a reward, and others, evenly spaced; None if there are no rewards.

        Rewards are taken more often than they come, since the area under the ROC curve does not depend on how often.
        """
        bound = self.bound
        envs = store.select("validation" if store.num_validation_envs else "training")
        first = max(store.oldest, store.rows - bound.recent) + bound.context + bound.horizon - 2
        rows = range(first, store.rows - 1)
        if not rows:
            return None
        rewarded = store.columns(rows, envs)["reward"] != 0
        picked = []
        for kind in (rewarded, ~rewarded):
            env, row = kind.nonzero()
            spaced = np.linspace(0, len(env) - 1, min(bound.windows // 2, len(env))).round().astype(np.int64)
            picked.append((envs[env[spaced]], first + row[spaced]))
        if len(picked[0][0]) == 0:
            return None
        env, row = (np.concatenate(parts) for parts in zip(*picked, strict=True))
        length = bound.context + bound.horizon
        return store.gather(env, row - length + 2, length, frame_stack)

    def state_dict(self) -> dict[str, Any]:
        """Return the last measurement."""
        return {"auc": self.auc, "measured_at": self.measured_at, "said": self.said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the last measurement."""
        self.auc, self.measured_at, self.said = state["auc"], state["measured_at"], state["said"]
