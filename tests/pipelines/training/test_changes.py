"""What differs between the configurations of a checkpoint and of the run that goes on from it."""

import copy

import pytest

from modules.errors import UserError
from pipelines.training.changes import changes, check, said

CONFIG = {
    "seed_everything": 0,
    "ckpt_path": None,
    "model": {"class_path": "a.UNet", "init_args": {"lr": 0.1, "size": "small", "rounds": {"model_updates": [2, 1]}}},
    "data": {"class_path": "b.AtariReplay", "init_args": {"game": "pong", "batch_size": 2}},
    "trainer": {
        "max_steps": 4,
        "callbacks": [
            {"class_path": "c.Collect", "init_args": {"prefill": 3}},
            {"class_path": "c.Keep", "init_args": {"every": 1}},
            {"class_path": "c.Keep", "init_args": {"every": 2}},
        ],
    },
}


def changed(**places):
    config = copy.deepcopy(CONFIG)
    for place, value in places.items():
        *path, last = place.split("__")
        part = config
        for name in path:
            part = part[int(name) if name.isdigit() else name]
        part[last] = value
    return changes(CONFIG, config)


def test_nothing_changed():
    assert changed() == []
    assert changed(ckpt_path="last.ckpt") == []


def test_changes_have_the_keys_of_the_command_line():
    found = changed(trainer__max_steps=8, model__init_args__lr=0.2, trainer__callbacks__2__init_args__every=5)
    assert said(found) == "model.lr 0.1 -> 0.2, trainer.max_steps 4 -> 8, trainer.callbacks.Keep_2.every 2 -> 5"
    check(found, "last.ckpt")


def test_what_comes_and_what_goes():
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"][0] = {"class_path": "c.Evaluate", "init_args": {"every": 9}}
    found = changes(CONFIG, config)
    assert ("trainer.callbacks.Evaluate.every", "nothing", 9) in found
    assert ("trainer.callbacks.Collect.prefill", 3, "nothing") in found
    check(found, "last.ckpt")


@pytest.mark.parametrize(
    "change",
    [
        {"seed_everything": 1},
        {"model__class_path": "a.VAE"},
        {"data__class_path": "b.MazeReplay"},
        {"data__init_args__game": "breakout"},
    ],
)
def test_what_cannot_change_is_refused_by_name(change):
    (found,) = changed(**change)
    with pytest.raises(UserError, match=rf"last.ckpt was written with {found[0]} {found[1]}, not {found[2]}"):
        check([found], "last.ckpt")


def test_batches_may_be_drawn_otherwise():
    check(changed(data__init_args__batch_size=5), "last.ckpt")
