"""Dyna-Q and Dyna-Q+ in the mazes of Sutton & Barto (2nd edition), sections 8.2 and 8.3, against known answers.

    python benchmarks/dyna_maze.py [--seed 1]

Figure 8.2: steps per episode in the maze of 14 steps by n planning steps, means over 30 learners, and the sum of those
of episodes 2 to 50. The first episode is a random walk whatever n is; solving its linear system gives 868.7 steps.
Figures 8.4 and 8.5: cumulative reward where the way is blocked after 1000 steps (60 learners, n = 10) and where a
shortcut opens after 3000 (20 learners, n = 50), and by how much Dyna-Q+ is ahead of Dyna-Q at the end. Discount 0.95,
epsilon 0.1, step size 0.1 (1 in the mazes that change), kappa 1e-4 (blocking) and 1e-3 (shortcut).

Learners are environments of one table, stepped together in the order of the book: act, learn, update the model, plan.
The step that opens an episode anew is nobody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import smoke
import torch

from datamodules.environments.mazes import MazeEnvironments
from modules.batch import Batch
from modules.policies.tabular_q import TabularQ
from modules.states.tabular import Tabular
from modules.world_model import Spec

SHOWN = (2, 3, 5, 10, 25, 50)


def play(
    environment: MazeEnvironments,
    policy: TabularQ,
    exploration_bonus: float,
    finished: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[np.ndarray]:
    """Let the learners act and learn until all are finished.

    Args:
        environment: an environment for every learner.
        policy: not built yet.
        exploration_bonus: of the model.
        finished: tells by steps (N,) and episodes (N,).

    Returns:
        what every step of each learner earned.
    """
    envs = environment.num_envs
    model = Tabular(environment.num_cells, envs, exploration_bonus)
    model.build_from(Spec(environment.observation_shape, 1, environment.num_actions))
    policy.build(model.feature_shape, environment.num_actions)
    observation, nothing = torch.from_numpy(environment.reset()), torch.zeros(envs, dtype=torch.bool)
    is_first, is_last = ~nothing, nothing
    rewards, moved, episodes = [], [], np.zeros(envs, np.int64)
    while not finished(environment.clock, episodes).all():
        logits, _ = policy(model.features(model.observe(nothing, nothing, observation, is_first)))
        action = torch.distributions.Categorical(logits=logits).sample()
        after = environment.step(action.numpy())
        following, closed = torch.from_numpy(after.observation), torch.from_numpy(after.terminated)
        reward = torch.from_numpy(after.reward)
        batch = Batch(
            action=torch.stack([action, torch.zeros_like(action)], dim=1),
            reward=torch.stack([reward, torch.zeros_like(reward)], dim=1),
            continuation=torch.stack([1 - closed.float(), torch.ones_like(reward)], dim=1),
            is_first=torch.stack([is_first, is_last], dim=1),
            is_last=torch.stack([is_last, closed], dim=1),
            observation=torch.stack([observation, following], dim=1),
        )
        states = model.loss(batch).states
        policy.loss(batch.replace(state=states), model)
        rewards.append(after.reward)
        moved.append(~is_last.numpy())
        episodes += after.terminated
        observation, is_first, is_last = following, is_last, closed
    return [earned[where] for earned, where in zip(np.stack(rewards, 1), np.stack(moved, 1), strict=True)]


def episode_lengths(planning_steps: int, envs: int, count: int) -> np.ndarray:
    """Return the steps of every learner's first episodes, (num_envs, count)."""
    rewards = play(
        MazeEnvironments("dyna", envs), TabularQ(planning_steps=planning_steps), 0.0,
        lambda steps, episodes: episodes >= count,
    )  # fmt: skip
    return np.stack([np.diff(np.flatnonzero(earned), prepend=-1)[:count] for earned in rewards])


def cumulative(maze: str, exploration_bonus: float, planning_steps: int, num_steps: int, envs: int) -> np.ndarray:
    """Return every learner's cumulative reward by steps, (num_envs, num_steps)."""
    rewards = play(
        MazeEnvironments(maze, envs), TabularQ(step_size=1.0, planning_steps=planning_steps), exploration_bonus,
        lambda steps, episodes: steps >= num_steps,
    )  # fmt: skip
    return np.stack([earned[:num_steps].cumsum() for earned in rewards])


def mean(values: np.ndarray) -> float:
    """Return a mean as a result shows it."""
    return round(float(values.mean()), 1)


def plot(lengths: dict[int, np.ndarray], changing: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw the three figures of the book side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, *others = figure.subplots(1, 3)
    for planning_steps, steps in lengths.items():
        left.plot(np.arange(2, steps.shape[1] + 1), steps.mean(0)[1:], label=f"n = {planning_steps}")
    left.axhline(14, color="grey", lw=0.8, ls=":")
    left.set(title="Dyna maze", xlabel="episode, from the second on", ylabel="steps, shortest 14", yscale="log")
    left.set_yticks([14, 30, 100, 300], labels=["14", "30", "100", "300"], minor=False)
    left.minorticks_off()
    for axes, (maze, curves) in zip(others, changing.items(), strict=True):
        for name, curve in curves.items():
            axes.plot(curve.mean(0), label=name)
        change_at = MazeEnvironments(maze, 1).change_at
        axes.axvline(change_at, color="grey", lw=0.8, ls=":")
        axes.set(title=f"{maze.capitalize()} maze, changed at {change_at}", xlabel="step", ylabel="cumulative reward")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--learners", type=int, default=60, smoke=2, help="learners of a figure, at most")
    parser.add_argument("--episodes", type=int, default=50, smoke=2, help="episodes of a learner in the first figure")
    parser.add_argument("--steps", type=int, default=6000, smoke=100, help="steps of the other figures, at most")
    options = parser.parse_args()
    seed = options.seed
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    lengths = {
        planning_steps: episode_lengths(planning_steps, min(30, options.learners), options.episodes)
        for planning_steps in (0, 5, 50)
    }
    changing = {
        maze: {
            name: cumulative(maze, bonus, planning_steps, min(num_steps, options.steps), min(envs, options.learners))
            for name, bonus in (("Dyna-Q+", kappa), ("Dyna-Q", 0.0))
        }
        for maze, kappa, planning_steps, num_steps, envs in (
            ("blocking", 1e-4, 10, 3000, 60),
            ("shortcut", 1e-3, 50, 6000, 20),
        )
    }
    totals = {n: steps[:, 1:].sum(1) for n, steps in lengths.items()}
    final = {maze: {name: curve[:, -1] for name, curve in curves.items()} for maze, curves in changing.items()}
    figures = {
        **{f"steps_2_50_n{n}": mean(total) for n, total in totals.items()},
        **{f"steps_2_50_n{n}_std": round(float(total.std(ddof=1)), 1) for n, total in totals.items()},
        "first_episode": mean(np.stack([steps[:, 0] for steps in lengths.values()])),
        **{f"{maze}_gap": mean(ends["Dyna-Q+"] - ends["Dyna-Q"]) for maze, ends in final.items()},
        "steps_by_episode": {
            f"n{n}": {episode: mean(steps[:, episode - 1]) for episode in SHOWN if episode <= options.episodes}
            for n, steps in lengths.items()
        },
        "cumulative_reward": {
            maze: {
                name: {
                    step: round(curve[:, step - 1].mean().item(), 1) for step in range(1000, curve.shape[1] + 1, 1000)
                }
                for name, curve in curves.items()
            }
            for maze, curves in changing.items()
        },
        "seed": seed,
        "minutes": round((time.perf_counter() - begin) / 60, 2),
    }
    if seed == 0:
        plot(lengths, changing, options.images / "dyna_maze.png")
    report.write("dyna_maze" + (f"_seed{seed}" if seed else ""), figures, options)


if __name__ == "__main__":
    main()
