"""MBPO: which dreams an update learns from, and that nothing real reaches the policy."""

import lightning
import pytest
import torch

from modules.rounds import Rounds
from pipelines.callbacks.dreaming.dyna import Dyna
from pipelines.callbacks.dreaming.mbpo import Mbpo
from tests.fakes import DotWorld
from tests.pipelines.callbacks.dreaming.dreams import FIXED, Generous, Notes, agent, dream, fit


def test_every_dream_is_used_once_an_epoch(record):
    mbpo = Mbpo(FIXED, num_dreams=10, minibatches=3, epochs=2)
    notes, _ = dream(record(), 12, mbpo)
    assert notes.launched == [number % 6 == 0 for number in range(12)]
    assert [batch.shape[0] for batch in notes.dreams[:6]] == [4, 3, 3, 4, 3, 3]

    def content(batches):
        value = torch.cat([batch.extras["value"] for batch in batches])
        return value[value[:, 0].argsort()]

    first, second, later = content(notes.dreams[:3]), content(notes.dreams[3:6]), content(notes.dreams[6:9])
    assert torch.equal(first, second)
    assert not torch.equal(first, later)
    assert not torch.equal(notes.dreams[0].extras["value"], notes.dreams[3].extras["value"]), "in the same order again"


def test_one_minibatch_and_one_epoch_are_on_policy(record):
    owned = []

    class Own(lightning.Callback):
        def on_train_batch_start(self, *args):
            owned.append(notes.own)

    mbpo = Mbpo(FIXED, num_dreams=6)
    notes = Notes(mbpo)
    fit(agent("dream"), record(), 4, mbpo, notes, Own())
    assert owned == [True] * 4
    owned.clear()
    mbpo = Mbpo(FIXED, num_dreams=6, epochs=2)
    notes = Notes(mbpo)
    fit(agent("dream"), record(), 4, mbpo, notes, Own())
    assert owned == [True, False, True, False]


@pytest.mark.parametrize("together", [True, False])
def test_dreams_of_an_earlier_round_are_dropped(record, together):
    """4 of 6 minibatches are used in a round; where the model has learned in between, the others are dropped."""
    rounds = Rounds(1, 4, together)
    notes, _ = dream(record(), 12 if together else 15, Mbpo(FIXED, num_dreams=6, minibatches=6), rounds=rounds)
    launched = [launched for launched, batch in zip(notes.launched, notes.dreams, strict=True) if batch is not None]
    assert launched == [number % (6 if together else 4) == 0 for number in range(12)]


class Poison(lightning.Callback):
    """Spoils all that is real, once dreams have their starts."""

    def on_train_batch_start(self, trainer, agent, batch, batch_idx):
        real = batch["real"]
        batch["real"] = real.replace(
            observation=torch.zeros_like(real.observation),
            reward=torch.full_like(real.reward, torch.nan),
            continuation=torch.full_like(real.continuation, torch.nan),
            action=torch.zeros_like(real.action),
            extras={name: torch.full_like(column, torch.nan) for name, column in real.extras.items()},
        )


def policy_weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.lightning_module.policy.parameters()])


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first, second) and bool(first.isfinite().all())


@pytest.mark.parametrize("together", [True, False])
def test_no_real_row_reaches_the_policy_of_mbpo(record, together):
    """Spoiled rows leave every weight of it as it is, bit for bit."""
    rounds = Rounds(1, 2, together)
    weights = []
    for callbacks in ([], [Poison()]):
        _, trainer = dream(record(), 6, Mbpo(FIXED, num_dreams=6), *callbacks, rounds=rounds)
        weights.append(policy_weights(trainer))
    assert same(*weights)


def test_real_rows_do_reach_the_policy_of_dyna(record):
    """That the test above can fail: the same rows, seen by a policy that learns from both."""
    weights = []
    for callbacks in ([], [Poison()]):
        _, trainer = dream(record(), 1, Dyna(FIXED, num_dreams=6), *callbacks)
        weights.append(policy_weights(trainer))
    assert not same(*weights)


def test_what_the_world_really_paid_does_not_matter_to_mbpo(record):
    """A store of the same play with other rewards: given the same model, the policy is the same; Dyna's is not."""
    for dreaming, expected in ((lambda: Mbpo(FIXED, num_dreams=6), True), (lambda: Dyna(FIXED, num_dreams=6), False)):
        weights = []
        for world in (DotWorld, Generous):
            assert record(world).sample(500).reward.max() == (1 if world is DotWorld else 4)
            _, trainer = dream(record(world), 5, dreaming(), rounds=Rounds(0, 1))
            weights.append(policy_weights(trainer))
        assert same(*weights) == expected
