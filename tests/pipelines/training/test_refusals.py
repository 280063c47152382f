"""Lightning's refusals are one line; bugs keep their traceback."""

from typing import Any

import pytest
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from modules.errors import UserError
from pipelines.training.refusals import check_nulls, refusing

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}


@pytest.mark.parametrize("settings", [{"devices": "abc"}, {"strategy": "foo"}, {"max_epochs": -2}], ids=str)
def test_the_key_that_the_trainer_names_is_named(settings):
    ((key, value),) = settings.items()
    with pytest.raises(UserError, match=rf"^trainer\.{key} is {value}: "), refusing(QUIET | settings):
        Trainer(**QUIET | settings)


def test_a_callback_that_lacks_what_it_watches():
    trainer = Trainer(**QUIET)
    with pytest.raises(UserError, match="evaluate/return"), refusing():
        EarlyStopping("evaluate/return")._run_early_stopping_check(trainer)


@pytest.mark.parametrize("settings", [None, QUIET])
@pytest.mark.parametrize("bug", [ValueError, TypeError, RuntimeError, KeyError])
def test_a_bug_of_ours_passes(settings, bug):
    with pytest.raises(bug, match="a bug"), refusing(settings):
        raise bug("a bug")


def test_what_lightning_calls_and_does_not_raise_itself_passes():
    class Broken(EarlyStopping):
        def _validate_condition_metric(self, logs):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"), refusing():
        Broken("loss")._run_early_stopping_check(Trainer(**QUIET))


def named(made: str, /, **settings: Any) -> Namespace:
    return Namespace(class_path=made, init_args=Namespace(**settings))


def test_null_where_a_class_takes_none():
    control, agent, q, collect = (
        f"{module}.{name}"
        for module, name in (
            ("datamodules.control", "ControlReplay"),
            ("modules.agent", "Agent"),
            ("modules.policies.q_learning", "QLearning"),
            ("pipelines.callbacks.acting.collect", "Collect"),
        )
    )
    check_nulls(Namespace(data=named(control, id=None, seed=None, path=None)))
    with pytest.raises(UserError, match=r"^data\.envs\.training is null: expected int"):
        check_nulls(Namespace(data=named(control, envs=Namespace(training=None))))
    policy = named(q, gradient_clip_val=None, self_prediction=None, optimization=Namespace(lr=None))
    with pytest.raises(UserError, match=r"^model\.policy\.optimization\.lr is null: expected float"):
        check_nulls(Namespace(model=named(agent, policy=policy)))
    with pytest.raises(UserError, match=r"^trainer\.callbacks\.prefill is null: expected int"):
        check_nulls(Namespace(trainer=Namespace(callbacks=[named(collect, prefill=None)])))
    with pytest.raises(UserError, match=r"^model\.rounds\.together is null: expected bool"):
        check_nulls(Namespace(model=named(agent, rounds=Namespace(together=None))))
