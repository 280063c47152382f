"""Sweeps of runs that take a moment: killed, cut, stopped early, failed. Nothing is lost, nothing counts twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from modules.errors import UserError
from pipelines.sweeps.process import Process
from pipelines.sweeps.trials import Trials

PROJECT = Path(__file__).resolve().parents[3]
KILLED = """
import sys
from pathlib import Path
from pipelines.sweeps import process, trials
from pipelines.sweeps.sweep_file import read
process.FIT = (sys.executable, "-m", "tests.pipelines.sweeps.instant")
trials.Trials(read(Path(sys.argv[1])), Path(sys.argv[2])).run(4, 1, lambda result: None)
"""
pytestmark = pytest.mark.usefixtures("instant")


def swept(sweep, folder, count=100, jobs=1, seed=0):
    """Run to the end, and return the results in order of their numbers."""
    trials = Trials(sweep, folder, seed)
    told = []
    trials.run(count, jobs, told.append)
    trials.lock.close()
    results = sorted(trials.results(), key=lambda result: result.number)
    assert [result.number for result in results] == list(range(len(results)))
    return results, told


def starts(folder):
    return (folder / "starts.txt").read_text().split("\n")[:-1]


def killed(sweep, folder, rows):
    """Kill a sweep with signal 9 when its second trial has so many rows; return the process of the trial."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, sweep.path, folder], cwd=PROJECT)
    run = Process(folder / "0001", [])
    deadline = time.monotonic() + 60
    while len(run.values("evaluate/return")) < rows and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert run.alive(), "it went down with the sweep, or never started"
    return run


def killed_too(sweep, folder, rows):
    """Kill a sweep as `killed` does, and then the process of its second trial, which is returned."""
    run = killed(sweep, folder, rows)
    os.kill(int((run.folder / "pid").read_text()), signal.SIGKILL)
    while run.alive():
        time.sleep(0.02)
    return run


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_grid_is_run_to_its_end(sweep, tmp_path, jobs):
    found = sweep(parameters={"rate": {"values": [1, 2]}, "seconds": {"values": [0, 0.01]}})
    results, told = swept(found, tmp_path / "sweep", found.size(), jobs)
    assert {(r.parameters["rate"], r.parameters["seconds"]) for r in results} == {
        (rate, seconds) for rate in (1, 2) for seconds in (0, 0.01)
    }
    assert all(r.state == "complete" and r.value == 10 * r.parameters["rate"] for r in results)
    assert len(told) == 4
    again, told = swept(found, tmp_path / "sweep", found.size(), jobs)
    assert again == results
    assert not told
    assert len(starts(tmp_path / "sweep")) == 4


@pytest.mark.parametrize(("method", "count"), [("random", 3), pytest.param("bayes", 7, marks=pytest.mark.slow)])
def test_a_sweep_that_goes_on_draws_what_it_would_have(sweep, tmp_path, method, count):
    parameters = {"rate": {"min": 0.0, "max": 1.0}, "x": {"min": 1, "max": 1000}, "seconds": {"value": 0}}
    found = sweep(method=method, parameters=parameters)
    straight, _ = swept(found, tmp_path / "straight", count)
    swept(found, tmp_path / "cut", count - 1)
    cut, _ = swept(found, tmp_path / "cut", count)
    assert [r.parameters for r in cut] == [r.parameters for r in straight]
    assert len({r.parameters["x"] for r in straight}) == count
    other, _ = swept(found, tmp_path / "other", 1, seed=1)
    assert other[0].parameters != straight[0].parameters


def test_a_run_that_fails_is_noted_and_the_sweep_goes_on(sweep, tmp_path):
    results, _ = swept(sweep(parameters={"rate": {"values": [1, -1, 2]}}), tmp_path / "sweep", 3)
    by_rate = {result.parameters["rate"]: result for result in results}
    assert [by_rate[rate].state for rate in (1, -1, 2)] == ["complete", "failed", "complete"]
    assert by_rate[-1].error == "ValueError: rate is negative"
    assert by_rate[-1].value is None


def test_a_metric_that_no_run_measures(sweep, tmp_path):
    found = sweep(metric={"name": "evaluate/retrun", "goal": "maximize"}, parameters={"rate": {"values": [1]}})
    (result,), _ = swept(found, tmp_path / "sweep", 1)
    assert result.state == "failed"
    assert result.error == "it measured no evaluate/retrun, the nearest is evaluate/return"


def test_a_sweep_ends_at_its_target(sweep, tmp_path):
    found = sweep(
        metric={"name": "evaluate/return", "goal": "maximize", "target": 20},
        parameters={"rate": {"values": [2]}, "x": {"values": [1, 2, 3]}},
    )
    results, _ = swept(found, tmp_path / "sweep", found.size())
    assert len(results) == 1


def test_runs_that_do_badly_are_stopped_early(sweep, tmp_path):
    found = sweep(
        parameters={"rate": {"values": [4, 1]}, "waits": {"value": 2}},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
    )
    (good, bad), _ = swept(found, tmp_path / "sweep", found.size(), seed=1)  # the good one first
    assert (good.parameters["rate"], good.state, good.value) == (4, "complete", 40)
    assert (bad.parameters["rate"], bad.state) == (1, "pruned")
    run = Process(bad.folder, [])
    assert 2 <= len(run.values("evaluate/return")) <= 6, "it ended at once"
    assert run.exit_code == 0, "and cleanly"
    assert bad.value <= 6


def test_a_run_outlives_its_sweep_and_is_found_again(sweep, tmp_path):
    found = sweep(method="random", parameters={"rate": {"min": 0.5, "max": 1.0}, "seconds": {"value": 0.15}})
    run = killed(found, tmp_path / "sweep", rows=2)
    results, told = swept(found, tmp_path / "sweep", 4)
    assert not run.alive()
    assert len(told) == 3
    assert all(r.state == "complete" and r.value == pytest.approx(10 * r.parameters["rate"]) for r in results)
    assert starts(tmp_path / "sweep") == ["0000 new", "0001 new", "0002 new", "0003 new"]


@pytest.mark.slow
def test_a_run_that_ended_while_nobody_looked_is_not_run_again(sweep, tmp_path):
    found = sweep(method="random", parameters={"rate": {"min": 0.5, "max": 1.0}, "seconds": {"value": 0.02}})
    run = killed(found, tmp_path / "sweep", rows=2)
    while run.alive():
        time.sleep(0.02)
    results, _ = swept(found, tmp_path / "sweep", 2)
    assert [result.state for result in results] == ["complete", "complete"]
    assert starts(tmp_path / "sweep") == ["0000 new", "0001 new"]


@pytest.mark.parametrize(("kept", "how"), [(True, "resumed"), pytest.param(False, "new", marks=pytest.mark.slow)])
def test_a_run_that_was_killed_too_goes_on_from_its_checkpoint(sweep, tmp_path, kept, how):
    found = sweep(method="random", parameters={"rate": {"min": 0.5, "max": 1.0}, "seconds": {"value": 0.1}})
    folder = tmp_path / "sweep"
    run = killed_too(found, folder, rows=3)
    if not kept:
        (run.folder / "checkpoints" / "last.ckpt").unlink()
    results, _ = swept(found, folder, 2)
    assert starts(folder) == ["0000 new", "0001 new", f"0001 {how}"]
    assert results[1].state == "complete"
    assert results[1].value == pytest.approx(10 * results[1].parameters["rate"])
    assert len(run.values("evaluate/return")) == 10


@pytest.mark.slow
def test_a_run_that_was_cut_in_its_last_evaluation_is_run_again(sweep, tmp_path):
    """It has nothing left to train, so that going on with it would measure nothing."""
    found = sweep(method="random", parameters={"rate": {"min": 0.5, "max": 1.0}, "seconds": {"value": 0.1}})
    folder = tmp_path / "sweep"
    run = killed_too(found, folder, rows=2)
    (run.folder / "checkpoints" / "last.ckpt").write_text("10")
    results, _ = swept(found, folder, 2)
    assert starts(folder) == ["0000 new", "0001 new", "0001 resumed", "0001 new"]
    assert results[1].value == pytest.approx(10 * results[1].parameters["rate"])


def test_a_folder_is_of_one_sweep(sweep, tmp_path):
    found = sweep()
    swept(found, tmp_path / "sweep", 1)
    other = sweep(parameters={"rate": {"values": [1, 3]}})
    with pytest.raises(UserError, match="a sweep of another"):
        Trials(other, tmp_path / "sweep")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="something other than a sweep"):
        Trials(found, tmp_path / "full")
    first = Trials(other, tmp_path / "used")
    with pytest.raises(UserError, match="in use"):
        Trials(other, tmp_path / "used")
    first.lock.close()


def test_what_is_kept_is_a_study_of_optuna(sweep, tmp_path):
    swept(sweep(), tmp_path / "sweep", 2)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert study.best_params == {"rate": 2}
    assert study.best_value == 20
