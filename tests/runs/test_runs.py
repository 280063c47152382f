"""Runs of the real command: every config, resuming, reports, loggers."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.replay.store import ReplayStore
from pipelines.console import CONFIGS
from pipelines.runs import checkpoints
from tests.running import experiments

PROJECT = Path(__file__).resolve().parents[2]
EXPERIMENTS = [CONFIGS / "quickstart.yaml", *experiments()]
LAST = Path("checkpoints") / "last.ckpt"


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def header(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return next(csv.reader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoints.read(path)["state_dict"].items() if isinstance(v, torch.Tensor)}


def test_help_lists_every_command(run):
    outcome = run("--help")
    assert outcome.code == 0
    for command in ("fit", "validate", "test", "predict", "collect"):
        assert f"\n  {command} " in outcome.out


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_runs(run, tmp_path, config):
    folder = tmp_path / "run"
    outcome = run(
        *("fit", "--config", config, "--config", "configs/trainer/cpu.yaml", "--config", "configs/debug.yaml"),
        *("--trainer.default_root_dir", folder, "--trainer.max_steps", 4),
    )
    assert outcome.code == 0, outcome.err
    assert checkpoints.read(folder / LAST)["global_step"] == 4
    losses = [name for name in header(folder) if name.endswith("loss")]
    assert losses or "tabular" in config.stem
    assert all(np.isfinite(column(folder, name)).all() for name in losses)


def test_a_run_leaves_pictures_and_a_table(fit, tmp_path):
    outcome = fit("--trainer.default_root_dir", tmp_path / "run")
    assert "dream|copy of the last frame" in outcome.out
    assert "foreseen" in outcome.out
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["horizon"]) for row in rows] == list(range(1, 51))
    film = Image.open(tmp_path / "run" / "dream.gif")
    assert film.n_frames == 51
    assert np.asarray(film.convert("L")).std() > 5
    assert (tmp_path / "run" / "dream.mp4").stat().st_size > 1000
    assert Image.open(tmp_path / "run" / "dream.png").width == 9 * 84 * 2
    assert Image.open(tmp_path / "run" / "predictions.png").width > 500


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    """DDP on the CPU: each rank plays and stores for itself, and the weights stay equal to the checkpoint's."""
    folder = tmp_path / "run"
    arguments = [
        *(
            "--config",
            "configs/quickstart.yaml",
            "--config",
            "configs/trainer/ddp.yaml",
            "--config",
            "configs/debug.yaml",
            "--model.size",
            "debug",
        ),
        *("--trainer.devices", "2", "--trainer.precision", "32-true", "--trainer.default_root_dir", str(folder)),
    ]
    subprocess.run([sys.executable, "-m", "pipelines.cli", "fit", *arguments], cwd=PROJECT, check=True, timeout=300)
    ranks = [ReplayStore.open(folder / "replay" / f"rank{rank}") for rank in (0, 1)]
    assert ranks[0].rows == ranks[1].rows
    batches = [store.gather(np.array([0]), np.array([0]), 64) for store in ranks]
    assert not torch.equal(batches[0].action, batches[1].action), "both ranks play the same game"
    checkpoint = checkpoints.read(folder / LAST)
    assert len(checkpoint["AtariReplay"]["ranks"]) == 2


# Configuration.


def test_the_resolved_config_is_kept_and_reproduces_the_run(run, fit, pong, tmp_path):
    trained = tmp_path / "first"
    assert fit("--data.path", pong, "--trainer.default_root_dir", trained).code == 0
    kept = yaml.safe_load((trained / "config.yaml").read_text())
    assert checkpoints.read(trained / LAST)["config"] == kept
    outcome = run("fit", "--config", trained / "config.yaml", "--trainer.default_root_dir", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    before, after = weights(trained / LAST), weights(tmp_path / "again" / LAST)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_runs_get_numbered_folders_of_their_own(fit, tmp_path, pong):
    for _ in range(2):
        assert fit("--data.path", pong, "--trainer.max_steps", 1).code == 0
    root = tmp_path / "runs" / "quickstart-debug"
    assert sorted(path.name for path in root.iterdir()) == ["0", "1"]
    assert fit("--data.path", pong, "--trainer.max_steps", 2, "--ckpt_path", "last").code == 0
    assert checkpoints.read(root / "0" / LAST)["global_step"] == 1
    assert checkpoints.read(root / "1" / LAST)["global_step"] == 2


# Resuming.


def test_a_resumed_run_equals_one_that_never_stopped(fit, tmp_path, pong):
    """From a store that exists: same batches, same losses, same weights, across validations and epochs."""
    arguments = ["--data.path", pong, "--model.optimization.decay", "false"]
    arguments += ["--model.input_noise", 0.1, "--model.unroll.warmup", 6]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert fit(*arguments, "--trainer.default_root_dir", straight, "--trainer.max_steps", 7).code == 0
    assert fit(*arguments, "--trainer.default_root_dir", stopped, "--trainer.max_steps", 3).code == 0
    resume = ["--ckpt_path", "last", "--trainer.max_steps", 7]
    assert fit(*arguments, "--trainer.default_root_dir", stopped, *resume).code == 0
    assert column(stopped, "train/loss") == column(straight, "train/loss")
    before, after = weights(straight / LAST), weights(stopped / LAST)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_ratio_of_steps_to_updates_is_pinned(run, tmp_path):
    config = tmp_path / "stream.yaml"
    experiment = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    experiment["trainer"]["callbacks+"][0]["init_args"] = {"prefill": 64, "steps_per_update": 3.0}
    config.write_text(yaml.safe_dump(experiment))
    folder = tmp_path / "run"
    arguments = ["fit", "--config", config, "--config", "configs/debug.yaml", "--trainer.default_root_dir", folder]
    assert run(*arguments, "--trainer.max_steps", 6).code == 0
    # Two environments step at once: an odd number of steps is rounded up. After the last update nothing is played.
    assert column(folder, "env_steps") == [68, 70, 74, 76, 80, 80]
    cut = ReplayStore.open(folder / "replay" / "rank0").rows
    assert run(*arguments, "--trainer.max_steps", 8, "--ckpt_path", "last").code == 0
    assert column(folder, "env_steps")[-2:] == [86, 86]
    batch = ReplayStore.open(folder / "replay" / "rank0").gather(np.array([0]), np.array([0]), cut + 3)
    assert not batch.is_first[0, cut], "the episodes that were running go on"


# After training.


def test_validate_and_test_measure_the_run(run, trained):
    for command in ("validate", "test"):
        outcome = run(
            *(command, "--config", trained / "config.yaml", "--ckpt_path", trained / LAST),
        )
        assert outcome.code == 0, outcome.err
        assert "dream|copy of the last frame" in outcome.out
        assert "foreseen" in outcome.out
        assert (trained / command / "predictions.csv").exists()
        assert (trained / command / "dream.gif").exists()


def test_predict_writes_dreams(run, trained):
    outcome = run("predict", "--config", trained / "config.yaml", "--ckpt_path", trained / LAST)
    assert outcome.code == 0, outcome.err
    dream = np.load(trained / "predict" / "batch_0_rank0.npz")
    batch_size, length = dream["action"].shape
    assert dream["frame"].shape == (batch_size, length, 1, 84, 84)
    assert dream["reward"].shape == dream["continuation"].shape == (batch_size, length)
    assert 0 <= dream["frame"].min() < dream["frame"].max() <= 1


# Weights & Biases.


def wandb(mode: str) -> list[str]:
    return ["--trainer.logger+=pipelines.runs.loggers.WandbLogger", "--trainer.logger.mode", mode]


def test_wandb_offline_keeps_its_run_when_resumed(fit, tmp_path, pong):
    arguments = ["--data.path", pong, "--trainer.default_root_dir", tmp_path / "run", *wandb("offline")]
    assert fit(*arguments, "--trainer.max_steps", 1).code == 0
    name = (tmp_path / "run" / "wandb_run_id.txt").read_text().strip()
    assert fit(*arguments, "--trainer.max_steps", 2, "--ckpt_path", "last").code == 0
    runs = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert runs
    assert all(path.name.endswith(name) for path in runs)
    deadline = time.monotonic() + 60  # its own process writes
    while not all(b"modules.frames.unet.UNet" in next(iter(path.glob("*.wandb"))).read_bytes() for path in runs):
        assert time.monotonic() < deadline, "the resolved config is not in the run"
        time.sleep(0.1)


def test_a_run_brings_no_warning_from_wandb(tmp_path):
    """In a process of its own: W&B says everything once per process."""
    arguments = ["--config", "configs/experiment/dqn_cartpole.yaml", "--config", "configs/debug.yaml"]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "1", *wandb("offline")]
    command = [sys.executable, "-m", "pipelines.cli", "fit", *arguments]
    outcome = subprocess.run(command, cwd=PROJECT, check=True, timeout=300, capture_output=True, text=True)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert "wandb: WARNING" not in outcome.stderr


def test_a_run_goes_on_when_wandb_cannot_be_reached(fit, tmp_path, pong, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.warns(UserWarning, match="cannot be reached") as warned:
        outcome = fit("--data.path", pong, "--trainer.default_root_dir", tmp_path / "run", *wandb("online"))
    assert outcome.code == 0, outcome.err
    assert sum("cannot be reached" in str(warning.message) for warning in warned) == 1
    assert os.listdir(tmp_path / "run" / "wandb")
