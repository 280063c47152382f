"""Dreams wait until rewards are foreseen."""

import copy
import math

import numpy as np
import pytest
import torch

from modules.errors import UserError
from modules.rounds import Rounds
from modules.world_model import Step
from pipelines.callbacks.dreaming.dyna import Dyna
from pipelines.callbacks.dreaming.foresight import Foresight, Gate
from pipelines.callbacks.dreaming.mbpo import Mbpo
from pipelines.callbacks.run import Run
from tests.pipelines.callbacks.dreaming.dreams import FIXED, Known, Notes, agent, dream, fit


class Learning(Known):
    """Foresees rewards between two numbers of its updates, and no reward at other times."""

    def __init__(self, first=5, last=10**6) -> None:
        super().__init__()
        self.first, self.last = first, last

    def step(self, state, action):
        after, reward, continuation = super().step(state, action)
        return Step(after, reward * (self.first <= self.updates < self.last), continuation)


BOUND = Foresight(auc=0.9, every=1)


def kinds(notes: Notes) -> list[bool]:
    """Whether each update had dreams."""
    return [batch is not None for batch in notes.dreams]


def test_dyna_learns_from_real_rows_alone_until_rewards_are_foreseen(record, capsys):
    dyna = Dyna(FIXED, foresight=BOUND)
    notes, trainer = dream(record(), 9, dyna, model=Learning(5))
    assert kinds(notes) == [False] * 5 + [True] * 4
    module = trainer.lightning_module
    assert (module.policy.updates, module.world_model.updates) == (9, 9)
    assert dyna.counts["policy_updates"] == 9
    assert capsys.readouterr().out.count("Dyna launches no dreams before rewards are foreseen") == 1
    assert trainer.callback_metrics["dream/foresight_auc"] == 1


@pytest.mark.parametrize("together", [True, False])
def test_mbpo_lets_the_model_learn_in_its_place(record, capsys, together):
    mbpo = Mbpo(FIXED, num_dreams=6, foresight=BOUND)
    rounds = Rounds(1, 1, together)
    notes, trainer = dream(record(), 10, mbpo, model=Learning(5), rounds=rounds)
    module = trainer.lightning_module
    waited = 5
    dreamt = 5 if together else 3
    assert sum(kinds(notes)) == module.policy.updates == mbpo.counts["policy_updates"] == dreamt
    assert not any(kinds(notes)[:waited])
    assert module.world_model.updates == mbpo.counts["model_updates"] == (10 if together else 7)
    assert capsys.readouterr().out.count("Mbpo launches no dreams") == 1


@pytest.mark.parametrize("kind", [Dyna, Mbpo])
def test_dreams_of_before_are_dropped_where_the_foresight_gets_worse(record, kind):
    dreaming = kind(FIXED, num_dreams=6, foresight=BOUND)
    notes, _ = dream(record(), 7, dreaming, model=Learning(0, 4))
    assert kinds(notes) == [True] * 4 + [False] * 3
    assert len(dreaming.store) == 0


@pytest.mark.parametrize("kind", [Dyna, Mbpo])
def test_a_model_that_foresees_from_the_start_dreams_as_without_a_bound(record, kind):
    (bound, _), (free, _) = (
        dream(record(), 4, kind(FIXED, num_dreams=6, foresight=foresight)) for foresight in (BOUND, None)
    )
    for a, b in zip(bound.dreams, free.dreams, strict=True):
        assert torch.equal(a.action, b.action)
        assert torch.equal(a.state, b.state)


def test_a_run_goes_on_with_its_last_measurement(record):
    data = record()
    run = Run(fit(agent(), data, 1, Dyna(FIXED)))
    data.setup("fit")
    model, gate = Learning(3), Gate(Foresight(every=2), "Dyna")
    assert not gate.is_open(run, model)
    again = Gate(Foresight(every=2), "Dyna")
    again.load_state_dict(copy.deepcopy(gate.state_dict()))
    assert again.said
    model.updates = 3
    assert not again.is_open(run, model), "it is not due"
    again.measured_at -= 2
    assert again.is_open(run, model)


@pytest.mark.parametrize("validation", [0, 1])
@pytest.mark.parametrize(("context", "horizon"), [(1, 1), (2, 3)])
def test_half_of_the_windows_end_in_a_reward(record, validation, context, horizon):
    store = record(num_rows=300).store
    store.num_validation_envs = validation
    envs = store.select("validation" if validation else "training")
    gate = Gate(Foresight(context=context, horizon=horizon, windows=500, recent=80), "Dyna")
    windows = gate.windows(store, 4)
    assert windows.shape[1] == context + horizon
    rewarded = windows.reward[:, -2] != 0
    all_rows = store.columns(range(220 + context + horizon - 2, 299), envs)
    assert rewarded.sum() == (all_rows["reward"] != 0).sum() >= 3
    assert (~rewarded).sum() == min(250, (all_rows["reward"] == 0).sum())
    row, env = windows.extras["log_prob"][:, 0], windows.extras["value"][:, 0]
    assert row.min() == 220
    assert row.max() == 300 - context - horizon
    assert set(env.unique().int().tolist()) == set(envs)
    gate.bound = Foresight(context=context, horizon=horizon, windows=6, recent=80)
    few = gate.windows(store, 4).reward[:, -2] != 0
    assert few.tolist() == [True] * 3 + [False] * 3


def test_without_rewards_nothing_is_known(record):
    data = record()
    run = Run(fit(agent(), data, 1, Dyna(FIXED)))
    data.setup("fit")
    columns = data.store.columns

    def without(rows, envs):
        found = columns(rows, envs)
        found["reward"] = np.zeros(found.shape)
        return found

    data.store.columns = without
    gate = Gate(Foresight(auc=0.0), "Dyna")
    assert not gate.is_open(run, Known())
    assert math.isnan(gate.auc)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"auc": 1.5}, "foresight.auc must be from 0 to 1: got 1.5"),
        ({"horizon": 0}, "foresight.horizon must be at least 1"),
        ({"windows": 1}, "foresight.windows must be at least 2"),
        ({"recent": 3}, "foresight.recent must be more than context \\+ horizon, 3 rows: got 3"),
    ],
    ids=str,
)
def test_mistakes_get_one_line(options, words):
    with pytest.raises(UserError, match=words):
        Foresight(**options)
