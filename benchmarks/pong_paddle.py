"""How much of the paddle's next movement in Pong is explained by what a world model may look at.

    python benchmarks/pong_paddle.py

Random play under atari100k. The right paddle's centre is read off the frames; its next movement is predicted by the
mean over all steps that look alike, rounded to half a pixel. Reported is the share of the movement's variance that is
explained, for several choices of what to look at.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import report
import smoke

from datamodules.environments.atari import AtariEnvironments

NUM_ENVS = 8
COURT, COLUMN, BACKGROUND, PADDLE_MASS = slice(14, 77), 74, 87, 300
MOVES = {"NOOP": 0, "FIRE": 0, "RIGHT": 1, "RIGHTFIRE": 1, "LEFT": -1, "LEFTFIRE": -1}


def play(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the paddle's centre (nan where it is hidden), where it was told to go, and which rows open an episode."""
    environments = AtariEnvironments("pong", NUM_ENVS)
    move = np.array([MOVES[name] for name in environments.action_meanings])
    actions = np.random.default_rng(0).integers(environments.num_actions, size=(steps, NUM_ENVS))
    frame, closed = environments.reset(), np.ones(NUM_ENVS, bool)
    centres, episode_starts = [], []
    for action in actions:
        mass = (frame[:, 0, COURT, COLUMN].astype(float) - BACKGROUND).clip(0, 80)
        total = mass.sum(axis=1)
        centre = (mass * np.arange(mass.shape[1])).sum(axis=1) / total.clip(1)
        centres.append(np.where(total > PADDLE_MASS, centre, np.nan))
        episode_starts.append(closed)
        frame, _, terminated, truncated = environments.step(action)
        closed = terminated | truncated
    environments.close()
    return np.stack(centres), move[actions], np.stack(episode_starts)


def explained(looks: np.ndarray, moved: np.ndarray) -> float:
    """Return 1 - (variance within groups of equal looks) / (variance)."""
    groups = defaultdict(list)
    for look, value in zip(map(tuple, looks), moved, strict=True):
        groups[look].append(value)
    within = sum(np.square(np.array(values) - np.mean(values)).sum() for values in groups.values())
    return round(float(1 - within / np.square(moved - moved.mean()).sum()), 3)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--steps", type=int, default=2500, smoke=200, help="steps of every environment")
    options = parser.parse_args()
    centre, told, opens = play(options.steps)
    movement = np.diff(centre, axis=0)
    rows = np.arange(2, options.steps - 1)
    known = ~(np.isnan(movement[1:-1]) | np.isnan(movement[2:]) | opens[1:-2] | opens[2:-1] | opens[3:])
    last, action, before = np.round(2 * movement[rows - 1]) / 2, told[rows], told[rows - 1]
    looks = {
        "action": [action],
        "movement_and_action": [last, action],
        "movement_action_and_the_action_before": [last, action, before],
    }
    moved = movement[rows][known]
    figures = {name: explained(np.stack([x[known] for x in parts], axis=1), moved) for name, parts in looks.items()}
    report.write(Path(__file__).stem, {"variance_explained_by": figures, "steps": int(known.sum()), "seed": 0}, options)


if __name__ == "__main__":
    main()
