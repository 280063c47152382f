"""Folders of runs whose scores are known."""

import dataclasses
from pathlib import Path

from datamodules.environments.atari import PROTOCOLS
from pipelines.evaluation import results
from pipelines.evaluation.results import Evaluation


def evaluation(score=1.0, **changes) -> Evaluation:
    """Two episodes of Pong, whose mean return is the score."""
    episodes = [{"seed": n, "return": float(score) + (-1) ** n, "length": 800, "finished": True} for n in range(2)]
    content = {
        "env_steps": 100_000,
        "updates": 50_000,
        "experiment": "dqn",
        "seed": 0,
        "environment": "atari",
        "game": "pong",
        "protocol": dataclasses.asdict(PROTOCOLS["atari100k"]),
        "policy": "greedy",
        "episodes": episodes,
        "final": True,
    }
    return Evaluation(**content | changes)


def write(folder: Path, scores: dict[int, float], **changes) -> Path:
    """A run with these scores at these numbers of real steps."""
    for steps, score in scores.items():
        results.append(folder, evaluation(score, env_steps=steps, final=steps == max(scores), **changes))
    return folder
