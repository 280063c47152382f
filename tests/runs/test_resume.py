"""Every experiment, killed and taken up again: what it ends with is what it would have ended with, bit for bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.replay.store import ReplayStore
from pipelines.console import CONFIGS
from pipelines.evaluation import results
from pipelines.runs import checkpoints
from tests.running import experiments

KEPT, LAST = Path("checkpoints") / "kept-step=3.ckpt", Path("checkpoints") / "last.ckpt"
KEEP = (
    *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k", -1),
    *("--trainer.callbacks.every_n_train_steps", 3, "--trainer.callbacks.filename", "kept-{step}"),
)
QUICK = ["dqn_cartpole", "tabular__dyna_q", "gumbel_muzero__atari_small", "unet__dyna_q"]
EXPERIMENTS = [path.stem for path in experiments()]
TWICE = ["dqn_cartpole"]
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS]


def differences(one, other, at="") -> list[str]:
    """Where two trees of plain data and tensors differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{at}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [found for key in one for found in differences(one[key], other[key], f"{at}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{at}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{at}[{i}]")]
    if isinstance(one, torch.Tensor):
        return [] if isinstance(other, torch.Tensor) and torch.equal(one, other) else [at]
    same = one == other or one is other or (one != one and other != other)  # NaN is what was not measured
    return [] if same else [f"{at}: {one} and {other}"]


def experiment(name: str) -> list[str]:
    return ["fit", "--config", name, "--config", str(CONFIGS / "debug.yaml")]


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_killed_ends_where_it_would_have_ended(run, tmp_path, name):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    arguments = [*experiment(name), *KEEP, "--trainer.max_steps", 7]
    outcome = run(*arguments, "--trainer.default_root_dir", straight)
    assert outcome.code == 0, outcome.err
    # As a kill leaves it: a store that went on, and a checkpoint from before.
    shutil.copytree(straight, killed)
    shutil.copy(killed / KEPT, killed / LAST)
    outcome = run(*arguments, "--trainer.default_root_dir", killed, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    same_end(straight, killed)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in TWICE else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_the_same_seed_leads_to_the_same_end(run, tmp_path, name):
    """In this process and in another one, whose hashes have another seed."""
    arguments = [*experiment(name), "--trainer.max_steps", "4", "--trainer.default_root_dir"]
    assert run(*arguments, tmp_path / "here").code == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "pipelines.cli", *arguments, str(tmp_path / "there")]
    subprocess.run(command, check=True, env=environment, cwd=CONFIGS.parent, capture_output=True, timeout=300)
    same_end(tmp_path / "here", tmp_path / "there")


def same_end(*folders: Path) -> None:
    """Assert that two runs ended with the same checkpoint and the same rows, bit for bit."""
    one, other = (checkpoints.read(folder / LAST) for folder in folders)
    for checkpoint in (one, other):
        del checkpoint["loops"], checkpoint["commit"]
        checkpoint["config"]["trainer"].pop("default_root_dir")
        checkpoint["callbacks"] = {k: v for k, v in checkpoint["callbacks"].items() if "ModelCheckpoint" not in k}
    found = differences(one, other)
    print(*found, sep="\n")
    assert found == []
    stores = [ReplayStore.open(folder / "replay" / "rank0") for folder in folders]
    rows = [
        store.gather(np.arange(store.num_envs), np.full(store.num_envs, store.oldest), store.rows - store.oldest)
        for store in stores
    ]
    assert len(rows[0].tensors()) > 5
    assert all(torch.equal(a, b) for a, b in zip(rows[0].tensors(), rows[1].tensors(), strict=True))


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(run, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    arguments = [*experiment("dqn_cartpole"), "--trainer.max_steps", 3, "--trainer.default_root_dir"]
    assert run(*arguments, straight).code == 0
    shutil.copytree(straight, killed, ignore=shutil.ignore_patterns("checkpoints"))
    assert run(*arguments, killed).refused("has a run already", "--ckpt_path last")
    outcome = run(*arguments, killed, "--ckpt_path", "last")
    assert outcome.code == 0
    assert "stopped before its first checkpoint" in outcome.err
    one, other = (checkpoints.read(folder / LAST)["state_dict"] for folder in (straight, killed))
    assert differences(dict(one), dict(other)) == []
    assert ReplayStore.open(killed / "replay" / "rank0").rows == ReplayStore.open(straight / "replay" / "rank0").rows


STOP = (
    *("--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.mode", "max"),
    *("--trainer.callbacks.monitor", "evaluate/return", "--trainer.callbacks.stopping_threshold", 0),
    *("--callbacks.Evaluate.every", 4),
)


@pytest.mark.parametrize(
    "end",
    [
        ["--trainer.max_steps", 3],
        ["--trainer.max_steps", -1, "--trainer.max_epochs", 1],
        ["--trainer.max_steps", -1, "--trainer.max_time", "00:00:00:01"],
        ["--trainer.max_steps", -1, *STOP],
    ],
    ids=["max_steps", "max_epochs", "max_time", "EarlyStopping"],
)
def test_a_run_that_was_killed_in_its_last_evaluation_evaluates(run, tmp_path, end):
    folder = tmp_path / "run"
    arguments = [*experiment("dqn_cartpole"), *end, "--trainer.default_root_dir", folder]
    assert run(*arguments).code == 0
    whole = results.read(folder)
    assert [each.final for each in whole].count(True) == 1
    updates = checkpoints.read(folder / LAST)["global_step"]
    assert (whole[-1].final, whole[-1].updates) == (True, updates)
    path = folder / results.FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    for _ in range(2):
        assert run(*arguments, "--ckpt_path", "last").code == 0
        again = results.read(folder)
        assert [each.final for each in again] == [each.final for each in whole]
        assert [list(each.returns) for each in again] == [list(each.returns) for each in whole]
        assert checkpoints.read(folder / LAST)["global_step"] == updates
