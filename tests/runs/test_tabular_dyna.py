"""Dyna-Q through the command, against what is known of it (Sutton & Barto, section 8.2)."""

import numpy as np

from datamodules.replay.store import ReplayStore
from pipelines.console import CONFIGS
from pipelines.runs import checkpoints

CONFIG = CONFIGS / "experiment" / "tabular__dyna_q.yaml"
QUIET = ("--trainer.logger", "false")


def envs(num: int) -> tuple[object, ...]:
    return (
        *("--model.world_model.init_args.num_envs", num, "--data.envs.training", num),
        *("--trainer.callbacks.prefill", 2 * num, "--trainer.callbacks.steps_per_update", num),
    )


def episode_lengths(store: ReplayStore) -> list[np.ndarray]:
    """Return the steps of each environment's finished episodes: rows between its first and its last."""
    rows = store.gather(np.arange(store.num_envs), np.zeros(store.num_envs, int), store.rows)
    opens, closes = rows.is_first.numpy(), rows.is_last.numpy()
    return [
        np.flatnonzero(last) - np.flatnonzero(first)[: last.sum()] for first, last in zip(opens, closes, strict=True)
    ]


def test_planning_learns_the_maze_in_few_episodes(run, tmp_path):
    """Episodes 2 to 10 take some 370 steps with n = 5, some 2300 without planning, and never less than 126."""
    folder = tmp_path / "run"
    outcome = run(
        *("fit", "--config", CONFIG, *envs(10), "--data.storage.capacity", 20_000, *QUIET),
        *("--trainer.default_root_dir", folder, "--trainer.max_steps", 1700, "--trainer.limit_train_batches", 1700),
    )
    assert outcome.code == 0, outcome.err
    lengths = episode_lengths(ReplayStore.open(folder / "replay" / "rank0"))
    lengths = [env[1:10] for env in lengths if len(env) >= 10]
    assert len(lengths) >= 6
    assert np.min(lengths) >= 14
    assert 250 < np.sum(lengths, axis=1).mean() < 600
    assert np.mean(lengths, axis=0)[5:].mean() < 25


def test_a_run_goes_on_in_the_maze_that_changed(run, tmp_path):
    folder = tmp_path / "run"
    arguments = (
        *("fit", "--config", CONFIG, *envs(2), "--data.maze", "blocking", "--data.change_at", 20, *QUIET),
        *("--trainer.default_root_dir", folder),
    )
    assert run(*arguments, "--trainer.max_steps", 30).code == 0
    last = folder / "checkpoints" / "last.ckpt"
    clocks = lambda: checkpoints.read(last)["MazeReplay"]["ranks"][0]["running"][0]["environment"]["clock"]  # noqa: E731
    assert clocks().tolist() == [31, 31]
    assert run(*arguments, "--trainer.max_steps", 40, "--ckpt_path", "last").code == 0
    checkpoint = checkpoints.read(last)
    assert clocks().tolist() == [41, 41]
    assert checkpoint["state_dict"]["world_model.clock"].tolist() == [40, 40]
