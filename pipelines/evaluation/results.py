"""Results of evaluations: evaluations.jsonl in a run's folder, with one evaluation per line."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from modules.errors import UserError
from pipelines.evaluation.report import published

FILE = "evaluations.jsonl"
LONGEST = 500
LARGEST = 1e30
"""Limits of texts and numbers in a line, so that a report can draw files from unknown sources."""

Episode = TypedDict("Episode", {"seed": int, "return": float, "length": int, "finished": bool})
"""An episode of an evaluation: raw return, length in agent steps, whether it ended before a limit of the evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Real episodes that one policy played at one moment of a run."""

    env_steps: int
    """Real agent steps that training had taken."""
    updates: int
    """Gradient updates that training had made."""
    experiment: str
    seed: int
    """Seed of the run."""
    environment: str
    """Family of the game: atari, control, ..."""
    game: str
    """Canonical id of the game: ms_pacman, CartPole-v1."""
    protocol: dict[str, Any]
    """How the game was played, as plain JSON. Scores of two protocols are not comparable."""
    policy: str
    """greedy or sampled, and the chance of a random action where there is one: "greedy, epsilon 0.05"."""
    episodes: list[Episode]
    """Episodes of the evaluation, at least one."""
    final: bool = False
    """Whether a report takes this evaluation as the run's score."""
    checkpoint: str | None = None
    """Checkpoint of the agent that played."""
    date: str | None = None
    """Date and time in UTC at which the last episode ended, as ISO 8601."""

    @property
    def returns(self) -> np.ndarray:
        """The raw return of every episode, (episodes,)."""
        return np.array([episode["return"] for episode in self.episodes], np.float64)

    @property
    def score(self) -> float:
        """The mean raw return over episodes."""
        return float(self.returns.mean())


def append(folder: Path | str, evaluation: Evaluation) -> None:
    """Append an evaluation in a run's folder; first remove an incomplete line that a killed run left."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is a link or no file: a run writes only to its own files, remove it")
    line = json.dumps(dataclasses.asdict(evaluation), default=_plain, allow_nan=False)
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        tail = content[content.rfind(b"\n") + 1 :]
        if tail and _is_cut(tail):
            file.truncate(len(content) - len(tail))
        elif tail:
            line = "\n" + line
        file.write(f"{line}\n".encode())


def read(folder: Path | str) -> list[Evaluation]:
    """Return the evaluations of a run's folder in the order in which they were made.

    A last line that a killed run did not finish is left out with a warning.

    Raises:
        UserError: the file does not exist, or one of its lines is no evaluation.
    """
    path = Path(folder) / FILE
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {FILE}: nothing was evaluated in this run") from None
    *lines, tail = content.split(b"\n")
    if tail and _is_cut(tail):
        warnings.warn(f"{path}: the last line was cut when the run was killed, and is left out", stacklevel=2)
    elif tail:
        lines.append(tail)
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def human_normalized(game: str, score: float) -> float | None:
    """Return (score − random) / (human − random): 0 plays at random, 1 like the human tester of the DQN papers.

    Args:
        game: id of the game in ALE, such as ms_pacman.
        score: raw return.

    Returns:
        None for a game that is not one of the 26 of Atari 100k.
    """
    return float(published.normalize(game, score)) if game in published.GAMES else None


def _parse(line: bytes, where: str) -> Evaluation:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: this is no JSON: {line[:40]!r}...") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a JSON object, got {line[:40]!r}")
    kinds = {"env_steps": int, "updates": int, "experiment": str, "seed": int, "environment": str, "game": str}
    kinds |= {"protocol": dict, "policy": str, "episodes": list}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{where}: {name} must be of type {kind.__name__}, got {content.get(name)!r}")
        if kind is str and not (content[name].isprintable() and len(content[name]) <= LONGEST):
            raise UserError(f"{where}: {name} must be a line of at most {LONGEST} letters, got {content[name][:40]!r}")
        if kind is int and not 0 <= content[name] < 1 << 63:
            raise UserError(f"{where}: {name} must be a number from 0 on, got {content[name]!r}")
    if not content["episodes"]:
        raise UserError(f"{where}: an evaluation without episodes")
    for episode in content["episodes"]:
        value = episode.get("return") if isinstance(episode, dict) else None
        if (
            not isinstance(value, int | float)
            or not abs(value) < LARGEST
            or not Episode.__required_keys__ <= {*episode}
        ):
            raise UserError(f"{where}: an episode has seed, return, length and finished, got {episode!r}")
    content["final"] = bool(content.get("final"))
    return Evaluation(**{f.name: content[f.name] for f in dataclasses.fields(Evaluation) if f.name in content})


def _is_cut(tail: bytes) -> bool:
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        return True
    return False


def _plain(value: Any) -> Any:
    # NumPy's numbers and arrays, as environments and actors return them.
    return value.tolist()
