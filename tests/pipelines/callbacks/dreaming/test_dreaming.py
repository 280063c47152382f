"""How long dreams are, where they start, which of them Dyna mixes in, and who is refused."""

import lightning
import numpy as np
import pytest
import torch

from modules.agent import Agent
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.policies.actor_critic import Reinforce
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from modules.policies.q_settings import Targets
from modules.rounds import Rounds
from pipelines.callbacks.dreaming.dreaming import Horizon
from pipelines.callbacks.dreaming.dyna import Dyna
from pipelines.callbacks.dreaming.mbpo import Mbpo
from pipelines.dreams.starts import Starts
from tests.pipelines.callbacks.dreaming.dreams import (
    FIXED,
    NUM_ENVS,
    ROWS,
    DebugLimits,
    Known,
    Notes,
    Numbered,
    agent,
    dream,
    fit,
)

# How long.


def test_horizons_grow_in_a_straight_line():
    horizon = Horizon(start=1, end=5, first_update=10, last_update=20)
    assert [horizon.at(update) for update in (0, 10, 12, 15, 18, 20, 99)] == [1, 1, 2, 3, 4, 5, 5]
    assert [Horizon(7, 7).at(update) for update in (0, 5)] == [7, 7]
    assert Horizon(9, 3, 0, 2).at(1) == 6


def test_dreams_are_as_long_as_the_schedule_says(record):
    horizon = Horizon(start=2, end=5, first_update=1, last_update=4)
    notes, trainer = dream(record(), 6, Dyna(horizon, num_dreams=4, capacity=8))
    assert [batch.shape[1] - 1 for batch in notes.dreams] == [2, 2, 3, 4, 5, 5]
    assert trainer.logged_metrics["dream/horizon"] == 5
    assert trainer.logged_metrics["dreamed_steps"] == 4 * (2 + 2 + 3 + 4 + 5 + 5)


def test_the_effective_horizon_is_what_survives(record):
    dyna = Dyna(Horizon(6, 6), num_dreams=50, capacity=50)
    _, trainer = dream(record(), 1, dyna)
    dreams = dyna.store.gather(np.arange(50))
    effective, value = 0.0, 0.0
    for b in range(50):
        alive = 1.0
        for t in range(6):
            effective += alive / 50
            value += alive * dreams.reward[b, t].item() / 50
            alive *= dreams.continuation[b, t].item()
    assert 1 < effective < sum(0.8**t for t in range(6))
    assert trainer.logged_metrics["dream/effective_horizon"] == pytest.approx(effective, rel=1e-5)
    assert trainer.logged_metrics["dream/return"] == pytest.approx(value, abs=1e-5)


# From where.


@pytest.fixture
def starts(record):
    """Return row and environment of every start, and the rows that were shown last."""

    def starts(data, num_dreams, **options):
        dyna = Dyna(FIXED, num_dreams=num_dreams, starts=Starts(**options))
        dyna.generator = np.random.default_rng(0)
        module = Agent(Numbered(), Reinforce(hidden=[8]))
        chosen = dyna.starts.draw(data, module.world_model, dyna.num_dreams, dyna.generator)
        return chosen[:, 0].numpy(), chosen[:, 1].numpy(), module.world_model.shown

    return starts


def flags(data, row, env):
    """Whether rows open and close an episode."""
    batch = data.store.gather(env, row, 1)
    return batch.is_first[:, 0].numpy(), batch.is_last[:, 0].numpy()


@pytest.mark.parametrize("options", [{}, {"recent": 8}], ids=str)
def test_dreams_start_from_all_rows_but_those_that_close_an_episode(record, starts, options):
    data = record(recent=5)
    row, env, shown = starts(data, num_dreams=3000, context=3, **options)
    assert row.shape == (3000,)
    assert shown.shape[1] == 3
    oldest = ROWS - options.get("recent", ROWS)
    everywhere = {(r, n) for r in range(oldest + 2, ROWS) for n in range(NUM_ENVS)}
    closing = {(r, n) for r, n in everywhere if flags(data, [r], [n])[1]}
    assert closing
    assert set(zip(row.tolist(), env.tolist(), strict=True)) == everywhere - closing


def test_starts_are_uniform(record, starts):
    row, env, _ = starts(record(), num_dreams=6000, context=1)
    counts = np.unique(row * NUM_ENVS + env, return_counts=True)[1]
    expected = 6000 / len(counts)
    assert np.abs(counts - expected).max() < 6 * expected**0.5


def test_some_dreams_start_where_episodes_open(record, starts):
    data = record()
    row, env, _ = starts(data, num_dreams=20, episode_starts=8, context=1)
    opens, closes = flags(data, row, env)
    assert opens[:8].all()
    assert not opens[8:].all()
    assert not closes.any()
    row, env, _ = starts(data, num_dreams=9, episode_starts=8, context=2)
    assert flags(data, row[:5] - 1, env[:5])[0].all()


def test_there_is_always_a_start(record, starts):
    """The newest row of every environment closes an episode: the one before it is left."""
    data = record(DebugLimits, num_rows=10)
    assert flags(data, [9] * NUM_ENVS, range(NUM_ENVS))[1].all()
    row, _, _ = starts(data, num_dreams=5, context=1, recent=2)
    assert (row == 8).all()


# Dyna.


@pytest.mark.parametrize(("ratio", "num"), [(0.5, 4), (1.0, 8), (3.0, 24), (0.01, 1)])
def test_dreams_are_mixed_in_at_the_ratio(record, ratio, num):
    """8 windows of 3 real transitions, dreams of 3 steps."""
    notes, _ = dream(record(), 3, Dyna(FIXED, ratio=ratio, num_dreams=5, capacity=40))
    assert [batch.shape for batch in notes.dreams] == [(num, 4)] * 3
    assert all(batch.state.shape == (num, 4, 4, 12, 12) for batch in notes.dreams)


def test_the_ratio_counts_the_real_transitions_that_are_learned_from(record):
    """8 windows of which a policy learns from the first row alone, and dreams of 3 steps: 24 of 8 transitions."""
    policy = QLearning(Network(channels=(4, 4, 4), hidden=(8,)), Targets(rows="first"))
    dyna = Dyna(FIXED, ratio=3.0, num_dreams=5, capacity=40)
    notes = Notes(dyna)
    fit(Agent(Known(), policy, "both"), record(), 2, dyna, notes)
    assert [batch.shape for batch in notes.dreams] == [(8, 4)] * 2


def test_dreams_are_launched_every_so_many_policy_updates(record):
    rounds = Rounds(model_updates=2, policy_updates=3, together=False)
    notes, _ = dream(record(), 20, Dyna(FIXED, every=4, num_dreams=5, capacity=40), rounds=rounds)
    policy_turns = [rounds.at(update).policy for update in range(20)]
    assert [batch is not None for batch in notes.dreams] == policy_turns
    launched = [launched for launched, policy in zip(notes.launched, policy_turns, strict=True) if policy]
    assert launched == [number % 4 == 0 for number in range(12)]
    assert not any(launched for launched, policy in zip(notes.launched, policy_turns, strict=True) if not policy)
    assert notes.dreaming.counts == {"dreamed_steps": 3 * 15, "model_updates": 8, "policy_updates": 12}


def test_dreams_of_a_model_that_moved_on_are_dropped(record):
    """Ran dry, it launches out of turn."""
    notes, _ = dream(record(), 12, Dyna(FIXED, every=100, max_age=4, num_dreams=5, capacity=40))
    assert [update for update, launched in enumerate(notes.launched) if launched] == [0, 5, 10]


def test_no_dream_is_older_than_its_model_may_be(record):
    """What dreams earn tells the weights of the model that dreamed them."""
    dyna, worths = Dyna(FIXED, every=1, max_age=2, num_dreams=100, capacity=1000), []

    class Worth(lightning.Callback):
        def on_train_batch_start(self, trainer, agent, batch, batch_idx):
            worths.append(agent.world_model.one.item())
            paid = dyna.store.gather(np.arange(len(dyna.store))).reward.abs().unique()
            assert paid[paid > 0].tolist() == pytest.approx(worths[-3:], abs=1e-6)

    dream(record(), 6, dyna, Worth())
    assert len(set(worths)) == 6


# What a checkpoint keeps.


@pytest.mark.parametrize("kind", [Dyna, Mbpo])
def test_counts_and_draws_go_on_where_they_stopped(record, kind):
    data = record()
    dreaming = kind(FIXED, num_dreams=6)
    dream(data, 3, dreaming)
    state = dreaming.state_dict()
    data.setup("fit")
    expected = dreaming.starts.draw(data, Numbered(), 4, dreaming.generator)
    again = kind(FIXED, num_dreams=6)
    again.load_state_dict(state)
    assert again.counts == dreaming.counts == {"dreamed_steps": 54, "model_updates": 3, "policy_updates": 3}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    again.on_fit_start(trainer, agent("dream"))
    assert torch.equal(again.starts.draw(data, Numbered(), 4, again.generator), expected)


# Mistakes.


class Short(Known):
    max_horizon = 4


class Blind(Known):
    capabilities = frozenset({"step", "decode"})


@pytest.mark.parametrize(
    ("kind", "model", "learns_from", "horizon", "words"),
    [
        (Mbpo, IdentityModel, "real", 3, "Mbpo needs a world model to dream in.*IdentityModel and real"),
        (Mbpo, Known, "real", 3, "policy_learns_from of dream or both: got Known and real"),
        (Dyna, Blind, "both", 3, "Blind has no reward"),
        (Dyna, Short, "both", 5, "Short dreams 4 steps at most: horizon of 5 is too long"),
        (Mbpo, Known, "both", 3, "set model.policy_learns_from to dream, not both"),
    ],
)
def test_who_cannot_dream_is_refused(record, kind, model, learns_from, horizon, words):
    dreaming = kind(Horizon(1, horizon), num_dreams=3)
    with pytest.raises(UserError, match=words) as raised:
        fit(agent(learns_from, model=model()), record(), 1, dreaming)
    assert "\n" not in str(raised.value)


def test_a_world_model_alone_does_not_dream(record):
    with pytest.raises(UserError, match=r"Dyna needs a model of class modules\.agent\.Agent: got Known"):
        fit(Known(), record(), 1, Dyna(FIXED))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Horizon(0, 5), "at least 1 step"),
        (lambda: Horizon(1, 5, 10, 10), "first_update < last_update"),
        (lambda: Dyna(FIXED, ratio=0), "ratio > 0"),
        (lambda: Dyna(FIXED, every=0), "every of at least 1"),
        (lambda: Dyna(FIXED, num_dreams=0), "num_dreams"),
        (
            lambda: Dyna(FIXED, num_dreams=4, starts=Starts(episode_starts=5)),
            "Dyna.starts.episode_starts must be from 0 to 4",
        ),
        (lambda: Starts(recent=2, context=2), "starts.recent must be more than the 2 rows of context: got 2"),
        (lambda: Mbpo(FIXED, epochs=0), "epochs of at least 1"),
        (lambda: Mbpo(FIXED, num_dreams=4, minibatches=5), "minibatches from 1 to num_dreams"),
    ],
)
def test_impossible_numbers(make, words):
    with pytest.raises(UserError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)
