"""Training runs of a benchmark: experiments times seeds, a few at a time, and what their evaluations say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from smoke import DEBUG, ROOT

from pipelines.evaluation import results
from pipelines.evaluation.results import Evaluation
from pipelines.evaluation.statistics import estimate, interquartile_mean, mean
from pipelines.machine.provenance import now

RECORDS = {"freeway": 20, "kung_fu_master": 5_000, "pong": 18}
"""Scores of docs/records.md, by game."""
RECORD_SEEDS, RECORD_EPISODES = 3, 10
"""Seeds of a record, and episodes of each."""
BEGUN = "begun.txt"
"""File in a run's folder with the date at which `dreamcade fit` was called."""


class Run(NamedTuple):
    """One training run."""

    experiment: str
    """A file of configs/experiment or configs/size."""
    seed: int
    settings: tuple[str, ...] = ()
    """KEY=VALUE arguments of `dreamcade fit`."""
    task: str = ""
    """Folder above that of the experiment."""
    config: str = ""
    """A file instead of the experiment's: whatever is not a KEY=VALUE, such as the arguments of a callback."""


def environment() -> dict[str, str]:
    """Return the environment of a process that trains: one thread, nothing sent, and benchmarks/ to import from."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": path}


def settings(config: str) -> dict[str, Any]:
    """Return the resolved configuration of an experiment, or of one at another size."""
    command = [sys.executable, "-m", "pipelines.cli", "fit", "--config", config, "--print_config"]
    printed = subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True).stdout
    content: dict[str, Any] = yaml.safe_load(printed)
    return content


def train(runs: Iterable[Run], folder: Path, at_a_time: int = 2, *, smoke: bool = False) -> dict[Run, list[Evaluation]]:
    """Train every run in a process and on a thread of its own; runs that are whole in the folder are not repeated.

    In a smoke run each is a few small updates.
    """

    def one(run: Run) -> list[Evaluation]:
        path = folder / run.task / run.experiment / str(run.seed)
        evaluations = results.read(path) if (path / results.FILE).exists() else []
        if not any(evaluation.final for evaluation in evaluations):
            command = [sys.executable, "-m", "pipelines.cli", "fit", "--config", run.config or run.experiment]
            command += [f"--seed_everything={run.seed}", *(f"--{setting}" for setting in run.settings)]
            command += DEBUG if smoke else []
            command.append(f"--trainer.default_root_dir={path}")
            path.mkdir(parents=True, exist_ok=True)
            (path / BEGUN).write_text(f"{now()}\n")
            with (path / "log.txt").open("w") as log:
                process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
                _, status, used = os.wait4(process.pid, 0)
            if code := os.waitstatus_to_exitcode(status):
                raise SystemExit(f"{path} failed with exit code {code}: see {path / 'log.txt'}")
            (path / "minutes.txt").write_text(f"{(used.ru_utime + used.ru_stime) / 60:.2f}\n")
            evaluations = results.read(path)
        print(f"{run.task} {run.experiment} {run.seed}: {evaluations[-1].score:.1f}", flush=True)
        return evaluations

    runs = list(runs)
    with ThreadPoolExecutor(at_a_time) as pool:
        return dict(zip(runs, pool.map(one, runs), strict=True))


def minutes(run: Run, folder: Path) -> float:
    """Return the minutes of a core that a run took, evaluations included, whoever shared the machine with it."""
    return float((folder / run.task / run.experiment / str(run.seed) / "minutes.txt").read_text())


def begun(run: Run, folder: Path) -> str:
    """Return the date and time at which a run was begun."""
    return (folder / run.task / run.experiment / str(run.seed) / BEGUN).read_text().strip()


def curve(evaluations: Iterable[Evaluation], begun: str) -> dict[str, list[Any]]:
    """Return [real steps, score] of every evaluation, the wall-clock minutes from `begun` to its end, its episodes."""
    evaluations = list(evaluations)
    start = datetime.fromisoformat(begun)
    ends = [datetime.fromisoformat(each.date) if each.date else None for each in evaluations]
    return {
        "curve": [[each.env_steps, round(each.score, 2)] for each in evaluations],
        "curve_minutes": [end and round((end - start).total_seconds() / 60, 2) for end in ends],
        "curve_episodes": [len(each.episodes) for each in evaluations],
    }


def minutes_to_record(game: str, runs: Sequence[dict[str, Any]]) -> float | None:
    """Return the minutes to the first evaluation that reaches the score of a game's record, None if none does.

    The n-th evaluations of the first three runs count together, if each has ten episodes or more: their mean must
    reach the score, and the slowest of the three gives the minutes.

    Args:
        game: one of RECORDS.
        runs: what `curve` says of the run of every seed.
    """
    runs = runs[:RECORD_SEEDS]
    if len(runs) < RECORD_SEEDS or not all("curve_minutes" in run for run in runs):
        return None
    points = [zip(run["curve"], run["curve_minutes"], run["curve_episodes"], strict=True) for run in runs]
    for moment in zip(*points, strict=False):
        scores, minutes, episodes = zip(*((score, at, number) for (_, score), at, number in moment), strict=True)
        if None not in minutes and min(episodes) >= RECORD_EPISODES and np.mean(scores) >= RECORDS[game]:
            return max(minutes)
    return None


def score_at(evaluations: list[Evaluation], env_steps: int) -> float:
    """Return the score of the first evaluation after so many real steps, or of the last one."""
    return next((e.score for e in evaluations if e.env_steps >= env_steps), evaluations[-1].score)


def summary(scores: Iterable[float]) -> dict[str, Any]:
    """Return interquartile mean and mean over seeds with their 95 % intervals, and the scores themselves."""
    scores = list(scores)
    figures = estimate([np.array(scores)], {"iqm": interquartile_mean, "mean": mean})
    return {
        **{
            name: {"value": _rounded(found.value), "low": _rounded(found.low), "high": _rounded(found.high)}
            for name, found in figures.items()
        },
        "scores": [round(score, 2) for score in scores],
    }


def _rounded(value: Any) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
