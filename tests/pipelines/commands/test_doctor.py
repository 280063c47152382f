"""Every finding is provoked; a machine where nothing is wrong has none."""

import os
import resource
import time

import pytest

from pipelines.machine import health
from pipelines.machine.provenance import installed_versions

GIB = health.GIB


def only(findings, *words, wrong=True) -> None:
    """Assert that there is one finding, in one line with these words."""
    (finding,) = findings
    assert finding.wrong == wrong
    assert "\n" not in finding.text
    missing = [word for word in words if word not in finding.text]
    assert not missing, (missing, finding.text)


def test_this_interpreter_and_others():
    assert not list(health.python())
    only(health.python("3.10.9"), "Python is 3.10.9", "3.11")
    only(health.python("3.14.0"), "Python is 3.14.0", "<3.14")


def test_packages_out_of_range_or_missing():
    installed = installed_versions()
    assert not list(health.packages())
    assert not health.missing()
    only(health.packages(installed | {"torch": "2.5.0"}), "torch is 2.5.0", ">=2.10", "pip install")
    del installed["gymnasium"]
    only(health.packages(installed), "gymnasium is not installed")
    assert len(list(health.packages({}))) > 10


def test_versions_that_were_not_tested():
    assert not list(health.constraints({"torch": "2.13.0+cu129", "unheard-of": "1.0"}))
    only(health.constraints({"numpy": "2.4.1", "torch": "2.13.0"}), "numpy 2.4.1 (tested: 2.4.6)", "pip install -c")
    only(health.constraints({"open-spiel": "1.6"}), "open-spiel 1.6")
    only(health.constraints(dict.fromkeys(installed_versions(), "0.0.1")), "and", "more")


def test_a_folder_that_cannot_be_written(tmp_path):
    assert not list(health.writable(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").touch()
    only(health.writable(tmp_path / "file"), "cannot be written", "Not a directory")
    only(health.writable(health.Path("/proc/runs")), "/proc/runs cannot be written")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        only(health.writable(tmp_path / "locked" / "runs"), "Permission denied")


def test_too_little_room(tmp_path):
    assert not list(health.disk(tmp_path, free=3 * GIB))
    only(health.disk(tmp_path / "runs", free=GIB), "1.0 GiB of disk", "2 are safe", "--data.storage.capacity")
    assert not list(health.memory(None))
    assert not list(health.memory(8 * GIB))
    only(health.memory(GIB), "1.0 GiB of memory", "--data.sampling.batch_size")
    only(health.shared_memory(gpus=2, size=GIB // 16), "/dev/shm", "--shm-size")
    only(health.shared_memory(gpus=0, size=GIB // 16), "/dev/shm", wrong=False)
    assert not list(health.shared_memory(tmp_path / "nowhere", gpus=2))


def test_a_gpu_that_torch_cannot_use():
    assert not list(health.gpu(present=True, usable=True))
    only(health.gpu(present=True, usable=False), "torch with CUDA")


def test_a_game_that_cannot_be_played():
    assert not list(health.emulator())
    only(health.emulator("pongg"), "cannot play pongg", "pip install")


def test_nobody_is_logged_in(tmp_path):
    only(health.weights_and_biases({}, tmp_path), "offline", "wandb login", wrong=False)
    assert not list(health.weights_and_biases({"WANDB_API_KEY": "x"}, tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert not list(health.weights_and_biases({}, tmp_path))
    only(health.weights_and_biases({"WANDB_BASE_URL": "https://wandb.example:8080/"}, tmp_path), "offline", wrong=False)


def test_too_few_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        only(health.open_files(), "300 files", "ulimit")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(health.open_files(4096))


def test_variables_that_take_threads_away():
    assert not list(health.threads({}, 8))
    assert not list(health.threads({"NUMBA_NUM_THREADS": "8"}, 8))
    only(health.threads({"NUMBA_NUM_THREADS": "1"}, 8), "searches use no more of 8 cores", "unset NUMBA_NUM_THREADS")
    only(health.threads({"NUMBA_NUM_THREADS": "0"}, 8), "'0'", "unset")
    only(health.threads({"NUMBA_DISABLE_JIT": "1"}, 8), "uncompiled")
    only(health.threads({"OMP_NUM_THREADS": "2"}, 8), "torch", "OMP_NUM_THREADS", wrong=False)


def test_a_clock_before_the_last_commit():
    assert not list(health.clock(time.time()))
    only(health.clock(1e9, committed=1.7e9), "2001-09-0", "2023-11-1", "set the clock")


def test_the_command_ends_by_what_it_finds(run, monkeypatch):
    outcome = run("doctor")
    assert "\ntorch " in outcome.out
    assert "GiB free" in outcome.out
    assert outcome.code == int("\nwrong: " in outcome.out)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "many")
    outcome = run("doctor")
    assert outcome.code == 1
    assert "\nwrong: NUMBA_NUM_THREADS is 'many'" in outcome.out
    assert run("doctor", "--run", "x").refused("--run", "--runs")


@pytest.mark.parametrize("name", ["torch", "ale-py"])
def test_the_command_says_what_is_not_installed(run, monkeypatch, name):
    monkeypatch.setattr(health, "installed_version", lambda package: None if package == name else "1")
    assert run("doctor").refused(f"not installed: {name};", "pip install")
