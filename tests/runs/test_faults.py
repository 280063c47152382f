"""What happens to a run: nothing that was recorded is lost, one line says what to do, and the run goes on."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from datamodules.replay.store import ReplayStore
from pipelines.evaluation import results
from pipelines.runs import checkpoints
from tests.runs.test_resume import LAST, same_end
from tests.runs.test_runs import PROJECT

OFTEN = (
    *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_last", "true"),
    *("--trainer.callbacks.save_top_k", 0, "--trainer.callbacks.every_n_train_steps", 2),
    *("--trainer.callbacks.enable_version_counter", "false"),
)


def dqn(folder: Path, max_steps: int, prefill: int = 300) -> list[str]:
    """A small run on CartPole with a checkpoint every other update."""
    config = yaml.safe_load((PROJECT / "configs/experiment/dqn_cartpole.yaml").read_text())
    evaluate, collect = config["trainer"]["callbacks+"]
    evaluate["init_args"] = {"every": 0, "episodes": 2, "final_episodes": 2}
    collect["init_args"] = {"prefill": prefill, "steps_per_update": 4.0}
    path = folder.parent / f"dqn{prefill}.yaml"
    path.write_text(yaml.safe_dump(config))
    debug = ["--config", PROJECT / "configs/debug.yaml", "--data.storage.capacity", 100_000]
    steps = ["--trainer.max_steps", max_steps, "--trainer.limit_train_batches", 100_000]
    return [*map(str, ["fit", "--config", path, *debug, *OFTEN, *steps, "--trainer.default_root_dir", folder])]


def start(arguments: list[str], code: str = "") -> subprocess.Popen:
    """Start a run in a process of its own, after some code."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # whoever started the tests
    code = f"import os, signal, sys\nfrom pipelines import cli\n{heard}\n{code}\ncli.main(sys.argv[1:])"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until(happened, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(folder: Path, verify: bool = True) -> int:
    """How many rows of every environment a run has recorded, every one of them whole."""
    path = folder / "replay" / "rank0"
    if not (path / "meta.json").exists():
        return 0
    store = ReplayStore.open(path, verify=verify)
    found = store.rows
    store.close()
    return found


# Killed.

MOMENTS = {
    "playing": ("gymnasium.envs.classic_control.cartpole.CartPoleEnv", "step", 300),
    "appending": ("datamodules.replay.format.HeadFile", "write_rows", 160),
    "writing a checkpoint": ("os", "fsync", 5),
    "having written a checkpoint": ("os", "fsync", 6),
    "evaluating": ("pipelines.callbacks.measuring.evaluate", "append", 1),
}
"""What is about to be called, for which time."""

KILL = """
import importlib, pkgutil
owner = pkgutil.resolve_name({0!r})
called, before = 0, getattr(owner, {1!r})
def call(*arguments, **options):
    global called
    called += 1
    if called == {2}:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(*arguments, **options)
setattr(owner, {1!r}, call)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    process = start(dqn(folder, 9))
    assert process.wait() == 0
    return folder


@pytest.mark.parametrize(
    "moment",
    [pytest.param(name, marks=pytest.mark.slow) if "append" in name or "having" in name else name for name in MOMENTS],
)
def test_kill(run, tmp_path, straight, moment):
    folder = tmp_path / "run"
    process = start(dqn(folder, 9), KILL.format(*MOMENTS[moment]))
    assert process.wait(timeout=120) == -signal.SIGKILL, process.communicate()[1]
    assert rows(folder) > 0
    assert (folder / LAST).exists()
    outcome = run(*dqn(folder, 9), "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    same_end(straight, folder)
    assert [list(each.returns) for each in results.read(folder)] == [
        list(each.returns) for each in results.read(straight)
    ]


# Stopped.


def test_ctrl_c_leaves_a_checkpoint(run, tmp_path, straight):
    folder = tmp_path / "run"
    process = start(dqn(folder, 100_000))
    wait_until((folder / LAST).exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    first, last = (line for line in err.splitlines() if line.startswith("dreamcade: "))
    assert "Ctrl-C again" in first
    assert "--ckpt_path last resumes" in last
    updates = checkpoints.read(folder / LAST)["global_step"]
    recorded = rows(folder)
    assert run(*dqn(folder, updates + 2), "--ckpt_path", "last").code == 0
    assert rows(folder) > recorded


def test_a_second_run_in_a_folder_and_sigterm_before_the_first_update(run, tmp_path):
    folder = tmp_path / "run"
    process = start(dqn(folder, 9, prefill=100_000))
    wait_until(lambda: rows(folder, verify=False) > 100, process)
    assert run(*dqn(folder, 9), "--ckpt_path", "last").refused("another run is using", str(folder))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (line,) = (line for line in err.splitlines() if line.startswith("dreamcade: "))
    assert "--ckpt_path last resumes" in line
    kept = checkpoints.read(folder / LAST)
    assert kept["global_step"] == 0
    assert 100 < kept["env_steps"] < 100_000
    assert rows(folder) * 2 == kept["env_steps"]
    assert run(*dqn(folder, 3), "--ckpt_path", "last").code == 0
    assert rows(folder) * 2 >= kept["env_steps"]


# An environment that dies.


class Fragile(CartPoleEnv):
    """A CartPole that loses its simulator at a step, once."""

    left = -1

    def step(self, action):
        Fragile.left -= 1
        if Fragile.left == 0:
            raise ConnectionError("the simulator\nis gone")
        return super().step(action)


gymnasium.register(id="Fragile-v0", entry_point=Fragile, max_episode_steps=500)


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=() if step == 290 else pytest.mark.slow) for step in (100, 290, 297)]
)
def test_an_environment_that_dies(run, tmp_path, monkeypatch, step):
    """Before the first update, and later."""
    folder = tmp_path / "run"
    arguments = [*dqn(folder, 6), "--data.id", "Fragile-v0"]
    monkeypatch.setattr(Fragile, "left", step)
    outcome = run(*arguments)
    assert outcome.refused("Fragile-v0 died: ConnectionError: the simulator is gone (test_faults.py, line", str(LAST))
    gc.collect()  # as the end of the process would
    kept = checkpoints.read(folder / LAST)
    assert kept["global_step"] < 6
    assert (kept["global_step"] > 0) == (step > 100)
    recorded = rows(folder)
    assert recorded * 2 == kept["env_steps"] > 0
    before = everything(folder, recorded)
    assert run(*arguments, "--ckpt_path", "last").code == 0
    assert checkpoints.read(folder / LAST)["global_step"] == 6
    assert rows(folder) > recorded
    assert all(torch.equal(one, other) for one, other in zip(before, everything(folder, recorded), strict=True))


def everything(folder: Path, rows: int) -> list[torch.Tensor]:
    """All columns of the first rows of every environment."""
    store = ReplayStore.open(folder / "replay" / "rank0")
    batch = store.gather(np.arange(store.num_envs), np.zeros(store.num_envs, int), rows)
    store.close()
    return [tensor.clone() for tensor in batch.tensors()]


def test_an_environment_that_dies_in_an_evaluation(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    arguments = [*dqn(folder, 6), "--data.id", "Fragile-v0"]
    monkeypatch.setattr(Fragile, "left", 330)
    assert run(*arguments).refused("Fragile-v0 died", "--ckpt_path last")
    gc.collect()
    assert checkpoints.read(folder / LAST)["global_step"] == 6
    assert not (folder / results.FILE).exists()
    assert run(*arguments, "--ckpt_path", "last").code == 0
    assert len(results.read(folder)) == 1
    monkeypatch.setattr(Fragile, "left", 5)
    assert run("evaluate", folder / LAST).refused("Fragile-v0 died")


# A full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("left", [0, 20_000, 200_000])
def test_a_full_disk(run, small_disk, left):
    folder = small_disk / "run"
    arguments = [*dqn(folder, 4), "--data.storage.capacity", 400]
    assert run(*arguments).code == 0
    kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".bin"]
    before = {path: path.read_bytes() for path in kept}
    free = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    arguments[arguments.index("--trainer.max_steps") + 1] = "8"
    assert run(*arguments, "--ckpt_path", "last").refused("no space left on disk", "written before is intact")
    gc.collect()
    for path, content in before.items():
        if path.suffix == ".ckpt":
            checkpoints.read(path)
        elif path.name != "config.yaml":
            assert path.read_bytes().startswith(content[:-4]), path
    assert not [path for path in folder.rglob("*") if "tmp" in path.name]
    ballast.unlink()
    assert run(*arguments, "--ckpt_path", "last").code == 0
    assert checkpoints.read(folder / LAST)["global_step"] == 8


# A clock that jumps.


def test_a_clock_that_jumps(run, tmp_path, straight, monkeypatch):
    folder = tmp_path / "run"
    clock, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: clock() + 86_400 * (next(calls) % 3 - 1))
    assert run(*dqn(folder, 9)).code == 0
    same_end(straight, folder)
    future = clock() + 86_400 * 365
    for path in folder.rglob("*"):
        os.utime(path, (future, future))
    assert run(*dqn(folder, 11), "--ckpt_path", "last").code == 0
    assert checkpoints.read(folder / LAST)["global_step"] == 11
    assert next(calls) > 10


def test_the_newest_run_is_the_one_with_the_highest_number(fit, tmp_path, pong):
    for _ in range(2):
        assert fit("--data.path", pong, "--trainer.max_steps", 1).code == 0
    first, second = (tmp_path / "runs" / "quickstart-debug" / name for name in "01")
    for path in [first, *first.rglob("*")]:
        os.utime(path, (2**32, 2**32))
    for path in [second, *second.rglob("*")]:
        os.utime(path, (0, 0))
    assert fit("--data.path", pong, "--trainer.max_steps", 2, "--ckpt_path", "last").code == 0
    assert checkpoints.read(first / LAST)["global_step"] == 1
    assert checkpoints.read(second / LAST)["global_step"] == 2
