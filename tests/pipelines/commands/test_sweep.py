"""`dreamcade sweep` with real runs of DQN."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipelines.sweeps.process import Process

PROJECT = Path(__file__).resolve().parents[3]
CONFIG = ["--config", "configs/experiment/dqn_cartpole.yaml", "--config", "configs/debug.yaml"]
STEPS = ["--trainer.max_steps=700", "--trainer.limit_train_batches=700"]
CONTENT = {
    "command": ["${env}", "dreamcade", "fit", *CONFIG, *STEPS, "${args}"],
    "method": "random",
    "metric": {"name": "evaluate/return", "goal": "maximize"},
    "parameters": {
        "model.policy.optimization.lr": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-2},
        "model.policy.network.hidden": {"values": ["[8]", "[16, 16]"]},
    },
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # of the runs
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


def test_mistakes_are_found_before_anything_runs(run, tmp_path, file):
    assert run("sweep", "mbpo_bays").refused("mbpo_bays", "configs/sweep/mbpo_bayes.yaml")
    assert run("sweep", file).refused("method random draws trials without end", "--count")
    assert run("sweep", file, "--count", 0).refused("--count", "at least 1")
    assert run("sweep", file, "--cuont", 1).refused("cuont", "count")
    file.write_text(yaml.safe_dump(CONTENT | {"parameters": {"model.policy.optimization.lrr": {"values": [1]}}}))
    assert run("sweep", file, "--count", 1).refused(
        "tiny.yaml", "model.policy.optimization.lrr", "model.policy.optimization.lr"
    )
    assert not (tmp_path / "runs").exists()


def test_a_sweep_whose_trials_all_fail(run, tmp_path, file):
    file.write_text(yaml.safe_dump(CONTENT | {"parameters": {"data.storage.capacity": {"values": [-1]}}}))
    outcome = run("sweep", file, "--count", 1, "--folder", tmp_path / "sweep")
    assert outcome.refused("every trial failed", "capacity")
    with (tmp_path / "sweep" / "results.csv").open(newline="") as found:
        (row,) = csv.DictReader(found)
    assert row["state"] == "failed"
    assert "capacity" in row["error"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on(file, tmp_path):
    """Killed with its run by signal 9, and then stopped by SIGTERM: every trial is complete, and counts once."""
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "pipelines.cli", "sweep", file, "--count", "3", "--folder", folder]
    second = Process(folder / "0001", [])
    for signals in (signal.SIGKILL, signal.SIGTERM):
        sweep = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 180
        while not second.values("policy/loss") and time.monotonic() < deadline:
            time.sleep(0.1)
        sweep.send_signal(signals)
        _, err = sweep.communicate(timeout=60)
        if signals == signal.SIGKILL:
            os.kill(int((second.folder / "pid").read_text()), signal.SIGKILL)
            (second.folder / "metrics.csv").unlink()
        else:
            assert sweep.returncode == 0
            assert "the same command resumes" in err
        while second.alive():
            time.sleep(0.1)
    outcome = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    with (folder / "results.csv").open(newline="") as found:
        rows = list(csv.DictReader(found))
    assert sorted(row["trial"] for row in rows) == ["0", "1", "2"]
    assert {row["state"] for row in rows} == {"complete"}
    returns = [float(row["evaluate/return"]) for row in rows]
    assert returns == sorted(returns, reverse=True)
    for row in rows:
        kept = yaml.safe_load((Path(row["folder"]) / "config.yaml").read_text())
        policy = kept["model"]["init_args"]["policy"]["init_args"]
        assert policy["optimization"]["lr"] == float(row["model.policy.optimization.lr"])
        assert policy["network"]["hidden"] == yaml.safe_load(row["model.policy.network.hidden"])
    assert "0001" in outcome.stdout
    assert Image.open(folder / "parallel_coordinates.png").width > 500


def test_a_run_of_an_agent_is_online_under_its_name(fit, pong, tmp_path, monkeypatch):
    """Where the server cannot be reached it goes on offline. Runs side by side take folders of their own."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent01")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "runs" / "quickstart-debug" / "0").mkdir(parents=True)
    wandb = "--trainer.logger+=pipelines.runs.loggers.WandbLogger"
    with pytest.warns(UserWarning, match="cannot be reached"):
        assert fit("--data.path", pong, "--trainer.max_steps", 1, wandb).code == 0
    folder = tmp_path / "runs" / "quickstart-debug" / "1"
    assert (folder / "wandb_run_id.txt").read_text().strip() == "agent01"
    assert [path.name[-7:] for path in (folder / "wandb").glob("offline-run-*")] == ["agent01"]
