"""Runs the trials of a sweep: Optuna draws them, processes run them, and the sweep's folder stores them."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from modules.errors import UserError, nearest
from pipelines.sweeps.process import Process
from pipelines.sweeps.sweep_file import Sweep

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Result:
    """Result of a trial; state is complete, pruned, failed or running, and value is the metric or None."""

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    folder: Path
    error: str


@dataclass
class Live:
    """A trial with a run that has not ended."""

    trial: optuna.Trial
    process: Process
    reported: int
    pruned: bool


@dataclass
class Trials:
    """The trials of a sweep, including those of earlier calls.

    The value of a trial is the last value of its metric, as in W&B. Early stopping counts the logged values of the
    metric. The folder stores study.db, the sweep file, and a folder per trial.

    Args:
        sweep: sweep that the trials belong to.
        folder: folder of the sweep.
        seed: seed of the drawn parameters.

    Raises:
        UserError: the folder belongs to another sweep, or another process uses it.
    """

    sweep: Sweep
    folder: Path
    seed: int = 0
    live: list[Live] = field(default_factory=list)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        kept = self.folder / "sweep.yaml"
        if kept.exists() and yaml.safe_load(kept.read_text()) != self.sweep.content:
            raise UserError(f"{self.folder} holds a sweep of another {kept}: choose another --folder")
        if not kept.exists() and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} holds something other than a sweep: choose another --folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            shutil.copy(self.sweep.path, kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
        self.lock = kept.open()
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.folder} is in use: another sweep runs there") from None
        self.study = optuna.create_study(
            study_name=self.sweep.path.stem,
            storage=f"sqlite:///{self.folder / 'study.db'}",
            direction=self.sweep.goal,
            pruner=self.sweep.pruner(),
            load_if_exists=True,
        )

    def run(self, count: int, jobs: int, tell: Callable[[Result], None]) -> None:
        """Run trials until there are `count`, up to `jobs` at a time; interrupted trials resume first.

        An interrupt stops the runs too. The next call with the same arguments resumes them.

        Args:
            count: total number of trials.
            jobs: number of runs at the same time.
            tell: function that is called with every result.
        """
        cut = self.study.get_trials(states=[TrialState.RUNNING])
        try:
            while True:
                while len(self.live) < jobs and (cut or self.goes_on(count)):
                    self.start(cut.pop(0) if cut else None)
                if not self.live:
                    return
                time.sleep(POLL_SECONDS)
                for live in list(self.live):
                    if self.is_over(live):
                        self.live.remove(live)
                        tell(self.finish(live))
        except KeyboardInterrupt:
            for live in self.live:
                live.process.stop()
            while any(live.process.alive() for live in self.live):
                time.sleep(POLL_SECONDS)
            raise

    def goes_on(self, count: int) -> bool:
        """Return whether to start a new trial: there are fewer than `count`, and none has reached the target."""
        trials = self.study.trials
        values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
        return len(trials) < count and not any(map(self.sweep.reaches_target, values))

    def start(self, cut: FrozenTrial | None = None) -> None:
        """Start the run of a new trial, or resume the run of an interrupted trial."""
        number = len(self.study.trials) if cut is None else cut.number
        self.study.sampler = self.sweep.sampler(number, self.seed)
        trial = self.study.ask() if cut is None else optuna.Trial(self.study, cut._trial_id)
        values = {parameter.name: parameter.draw(trial) for parameter in self.sweep.parameters}
        trial.set_user_attr("values", json.dumps(values))
        process = Process(self.folder / f"{trial.number:04}", self.sweep.options(values))
        reported = self._frozen(trial).last_step or 0
        live = Live(trial, process, reported, "pruned" in trial.user_attrs)
        if not live.pruned:
            process.start()
        self.live.append(live)

    def is_over(self, live: Live) -> bool:
        """Report the new values of a run, stop the run if the pruner says so, and return whether it has ended."""
        alive = live.process.alive()
        if not alive and not live.pruned and live.process.was_over:
            shutil.rmtree(live.process.folder)
            live.process.start()
            return False
        for number, value in enumerate(live.process.values(self.sweep.metric), start=1):
            if number <= live.reported or live.pruned or not self.sweep.stops_early:
                continue
            live.reported = number
            live.trial.report(value, number)
            if live.trial.should_prune() and alive:
                live.pruned = True
                live.trial.set_user_attr("pruned", True)
                live.process.stop()
        return not alive

    def finish(self, live: Live) -> Result:
        """Store and return the result of a trial."""
        process, metric = live.process, self.sweep.metric
        values = process.values(metric)
        state, error = TrialState.COMPLETE, ""
        if live.pruned:
            state = TrialState.PRUNED
        elif process.exit_code != 0 or not process.finished:
            state, error = TrialState.FAIL, process.last_words()
        elif not values:
            state = TrialState.FAIL
            error = f"it measured no {metric}, the nearest is {nearest(metric, process.metrics())}"
        live.trial.set_user_attr("error", error)
        with suppress(RuntimeError):  # a complete grid stops `study.optimize`, which is not in use here
            self.study.tell(live.trial, values[-1] if state == TrialState.COMPLETE else None, state)
        return self.result(self._frozen(live.trial))

    def results(self) -> list[Result]:
        """Return all results: complete, pruned, running and failed ones, in each state the best first."""
        sign = -1 if self.sweep.goal == "maximize" else 1
        order = ["complete", "pruned", "running", "failed"]
        found = [self.result(trial) for trial in self.study.trials]
        return sorted(found, key=lambda r: (order.index(r.state), sign * (r.value or 0.0), r.number))

    def result(self, trial: FrozenTrial) -> Result:
        """Return the result of a trial; the value of a trial that was stopped early is its last one."""
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        return Result(
            number=trial.number,
            state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
            value=trial.value if trial.state == TrialState.COMPLETE else last,
            parameters=json.loads(trial.user_attrs.get("values", "{}")),
            folder=self.folder / f"{trial.number:04}",
            error=trial.user_attrs.get("error", ""),
        )

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study.trials[trial.number]
