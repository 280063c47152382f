"""Evaluated runs of a report. Runs whose scores are not comparable are refused."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modules.errors import UserError, nearest
from pipelines.evaluation import results
from pipelines.evaluation.results import Evaluation


@dataclass(frozen=True)
class Run:
    """One training run and its evaluations."""

    folder: Path
    evaluations: tuple[Evaluation, ...]
    """Evaluations by increasing real steps, one per number of steps, all of the same policy as the last one."""

    @property
    def last(self) -> Evaluation:
        """The last evaluation, which gives the score of the run."""
        return self.evaluations[-1]

    @property
    def steps(self) -> np.ndarray:
        """Real agent steps at the evaluations, (evaluations,)."""
        return np.array([evaluation.env_steps for evaluation in self.evaluations])

    @property
    def scores(self) -> np.ndarray:
        """Mean raw returns of the evaluations, (evaluations,)."""
        return np.array([evaluation.score for evaluation in self.evaluations])


def load(paths: Iterable[Path]) -> list[Run]:
    """Read the runs in some folders, sorted by experiment, game and seed.

    Raises:
        UserError: a folder does not exist or has no evaluations, the runs differ in environment or protocol, or two of
            them are the same experiment, game and seed.
    """
    runs = [_run(folder) for folder in find(paths)]
    runs.sort(key=lambda run: (run.last.experiment, run.last.game, run.last.seed))
    _check(runs)
    return runs


def find(paths: Iterable[Path]) -> list[Path]:
    """Return the folders with evaluations: the paths themselves, or folders beneath them."""
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            siblings = [other.name for other in path.parent.glob("*") if other.is_dir()]
            hint = f", the nearest is {path.parent / nearest(path.name, siblings)}" if siblings else ""
            raise UserError(f"there is no folder {path}{hint}")
        found = [path] if (path / results.FILE).exists() else sorted(p.parent for p in path.rglob(results.FILE))
        if not found:
            raise UserError(
                f"no evaluations found in {path}: expected {results.FILE} there or in a folder beneath it, as training "
                "with the Evaluate callback and dreamcade evaluate write it"
            )
        folders |= dict.fromkeys(found)
    unique = {folder.resolve(): folder for folder in reversed(folders)}
    return [folder for folder in folders if unique[folder.resolve()] == folder]


def _run(folder: Path) -> Run:
    evaluations = results.read(folder)
    if not evaluations:
        raise UserError(f"no evaluations found in {folder}: its {results.FILE} is empty")
    for title, key in {"experiments": "experiment", "games": "game", "seeds": "seed", "protocols": "protocol"}.items():
        kinds = {_hashable(getattr(evaluation, key)) for evaluation in evaluations}
        if len(kinds) > 1:
            raise UserError(f"{folder} has evaluations of {len(kinds)} {title}: expected one")
    # Of several evaluations at the same number of steps, the final one counts, because it has more episodes. Otherwise
    # the later one counts, because a resumed run repeats an evaluation.
    ordered = sorted(evaluations, key=lambda evaluation: (evaluation.env_steps, evaluation.final))
    by_step = {e.env_steps: e for e in ordered if e.policy == ordered[-1].policy}
    return Run(folder, tuple(by_step.values()))


def _check(runs: Sequence[Run]) -> None:
    environments = _by(runs, lambda run: run.last.environment)
    if len(environments) > 1:
        which = "; ".join(f"{name}: {_names(members)}" for name, members in environments.items())
        raise UserError(f"a report covers one environment, but these runs are of {len(environments)}: {which}")
    # Only scores of Atari games are aggregated. In other environments every game has its own protocol.
    atari = runs[0].last.environment == "atari"
    for members in _by(runs, lambda run: None if atari else run.last.game).values():
        protocols = list(_by(members, lambda run: _hashable(run.last.protocol)).values())
        if len(protocols) > 1:
            keys = _differences([group[0].last.protocol for group in protocols])
            which = "; ".join(
                f"{', '.join(f'{key} {group[0].last.protocol.get(key)}' for key in keys[:3])}: {_names(group)}"
                for group in protocols
            )
            raise UserError(
                f"scores of {len(protocols)} protocols are not comparable: write one report for each protocol: {which}"
            )
    for (experiment, game, seed), same in _by(
        runs, lambda run: (run.last.experiment, run.last.game, run.last.seed)
    ).items():
        if len(same) > 1:
            raise UserError(f"{_names(same)} are all {experiment} on {game} with seed {seed}: give only one of them")
    for (experiment, game), group in _by(runs, lambda run: (run.last.experiment, run.last.game)).items():
        policies = _by(group, lambda run: run.last.policy)
        if len(policies) > 1:
            which = "; ".join(f"{policy}: {_names(members)}" for policy, members in policies.items())
            raise UserError(f"{experiment} on {game} was evaluated with {len(policies)} policies: {which}")


def _by(runs: Iterable[Run], key: Any) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _hashable(value: Any) -> Hashable:
    return json.dumps(value, sort_keys=True)


def _differences(protocols: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    return [key for key in keys if len({_hashable(protocol.get(key)) for protocol in protocols}) > 1]


def _names(runs: Sequence[Run], shown: int = 3) -> str:
    names = [str(run.folder) for run in runs[:shown]]
    if len(runs) > shown:
        return f"{', '.join(names)} and {len(runs) - shown} more"
    return " and ".join(names)
