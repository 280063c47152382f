"""Schedules of a run follow whatever ends it."""

import pytest
from lightning import Trainer

from pipelines.callbacks.progress import share_done


def trainer(**settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(**{"max_steps": -1, "max_epochs": -1, "limit_train_batches": 4} | quiet | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 12},
        {"max_epochs": 3},
        {"max_steps": 12, "max_epochs": 5},
        {"max_steps": 99, "max_epochs": 3},
        {"max_epochs": 3, "limit_train_batches": 8, "accumulate_grad_batches": 2},
        {"max_epochs": 3, "limit_train_batches": 7, "accumulate_grad_batches": 2},
    ],
)
def test_a_run_is_cut_into_equal_parts_by_what_ends_it_first(settings):
    parts = [min(int(3 * share_done(trainer(**settings), update)), 2) for update in range(14)]
    assert parts == [0] * 4 + [1] * 4 + [2] * 6


def test_time_counts_as_well():
    run = trainer(max_time={"seconds": 100})
    (timer,) = (callback for callback in run.callbacks if type(callback).__name__ == "Timer")
    assert int(4 * share_done(run, 10**6)) == 0
    timer._offset = 60
    assert int(4 * share_done(run, 0)) == 2
    timer._offset = 200
    assert share_done(run, 0) == 1 or int(4 * share_done(run, 0)) == 3


def test_a_run_without_an_end_stays_in_its_first_part():
    assert int(4 * share_done(trainer(), 10**6)) == 0
