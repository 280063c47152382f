"""Players on a Ray cluster of two nodes on this machine, with processes of their own, one of which is killed."""

import csv
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from datamodules.replay.store import ReplayStore
from datamodules.settings import Envs
from modules.errors import UserError
from pipelines.callbacks.acting.ray_actors import RayActors
from pipelines.runs import checkpoints
from tests.runs.test_resume import LAST, differences

UPDATES = 60
KEEP = (
    *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k", -1),
    *("--trainer.callbacks.every_n_train_steps", 40, "--trainer.callbacks.filename", "kept-{step}"),
)


@pytest.fixture(scope="module")
def cluster():
    """Its address."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


class Kill(lightning.Callback):
    """Kills one of the players while it has work to do."""

    def on_fit_start(self, trainer, pl_module):
        player = trainer.datamodule.collector._players[1]
        self.pid = ray.get(player.__ray_call__.remote(lambda player: os.getpid()))
        assert self.pid != os.getpid()
        os.kill(self.pid, signal.SIGSTOP)

    def on_train_start(self, trainer, pl_module):
        assert trainer.datamodule.collector._asked
        os.kill(self.pid, signal.SIGKILL)


def play(run, folder, *more):
    """CartPole in three environments and a held-out one."""
    outcome = run(
        *("fit", "--config", "configs/experiment/dqn_cartpole.yaml", "--trainer.default_root_dir", folder),
        *("--data.envs.training", 3, "--data.envs.validation", 1, "--trainer.max_steps", UPDATES),
        *("--trainer.logger", "pipelines.runs.loggers.CSVLogger", "--trainer.log_every_n_steps", 1, *more),
    )
    assert outcome.code == 0, outcome.err
    return outcome


def on_ray(address, num_actors, lag):
    return [
        "--trainer.callbacks+=pipelines.callbacks.acting.ray_actors.RayActors",
        *("--trainer.callbacks.num_actors", num_actors, "--trainer.callbacks.max_policy_lag", lag),
        *("--trainer.callbacks.address", address),
    ]


def end(folder):
    """What a run ends with: its checkpoint, but for what names its configuration, and every row of its store."""
    checkpoint = checkpoints.read(folder / LAST)
    for name in ("loops", "config", "callbacks"):
        del checkpoint[name]
    store = ReplayStore.open(folder / "replay" / "rank0")
    every = np.arange(store.num_envs), np.full(store.num_envs, store.oldest)
    return checkpoint, store.gather(*every, store.rows - store.oldest).tensors()


def assert_same(one, other):
    assert differences(one[0], other[0]) == []
    assert len(one[1]) == len(other[1]) > 5
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def column(folder, name):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


def test_one_player_plays_what_no_ray_at_all_plays(run, tmp_path, cluster):
    handler = signal.getsignal(signal.SIGTERM)
    play(run, tmp_path / "local")
    play(run, tmp_path / "ray", *on_ray(cluster, 1, 0))
    assert_same(end(tmp_path / "local"), end(tmp_path / "ray"))
    assert {lag for _, lag in column(tmp_path / "ray", "policy_lag")} == {0}
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not ray.is_initialized()


@pytest.mark.slow
def test_players_that_lag_or_die(run, tmp_path, cluster):
    """Steps and lag are pinned; a player that is killed costs nothing; a run that goes on ends where it would have."""
    lagging = on_ray(cluster, 2, 20)
    play(run, tmp_path / "straight", *lagging, *KEEP)
    wanted = end(tmp_path / "straight")
    for step, env_steps in column(tmp_path / "straight", "env_steps"):
        if step < UPDATES - 1:  # nothing is played after the last update
            assert env_steps == 3 * np.ceil((300 + 0.25 * (step + 1)) / 3)
    lags = [lag for _, lag in column(tmp_path / "straight", "policy_lag")]
    assert 10 < max(lags) <= 20
    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    shutil.copy(tmp_path / "killed" / "checkpoints" / "kept-step=40.ckpt", tmp_path / "killed" / LAST)
    going_on = ["--ckpt_path", "last", f"--trainer.callbacks+={__name__}.Kill"]
    outcome = play(run, tmp_path / "killed", *lagging, *going_on)
    assert outcome.out.count("Ray actor 1 died") == 1
    assert_same(wanted, end(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (on_ray("null", 2, 0), ["2 Ray actors", "1 environments"]),
        (on_ray("null", 0, 0), ["num_actors >= 1"]),
        (on_ray("null", 1, -1), ["max_policy_lag >= 0"]),
        (on_ray("127.0.0.1:1", 1, 0), ["no Ray cluster at 127.0.0.1:1"]),
        (on_ray("nowhere", 1, 0), ["no Ray cluster at nowhere"]),
    ],
)
def test_bad_input(run, arguments, words):
    assert run("fit", "--config", "dqn_cartpole", *arguments).refused(*words)


def test_several_ranks():
    data = SimpleNamespace(envs=Envs(2))
    with pytest.raises(UserError, match=r"set trainer\.devices to 1, not 2"):
        RayActors(1).setup(SimpleNamespace(world_size=2, datamodule=data), None, "fit")


def test_without_ray(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("fit", "--config", "dqn_cartpole", *on_ray("null", 1, 0)).refused("Ray is not installed", "[ray]")
