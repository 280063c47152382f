"""Reanalyse on a tiny decision problem, beside a search by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.replay.priorities import Prioritised
from datamodules.settings import Sampling
from modules.errors import UserError
from modules.latents.muzero import MuZero
from pipelines.callbacks.learning.reanalyse import Reanalyse
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.rules import Puct, Stop
from pipelines.search.search import Search
from tests.modules.latents.test_muzero import make, play, wake
from tests.modules.policies.mdp import DISCOUNT
from tests.pipelines.callbacks.dreaming.dreams import agent

SEARCH = Search(Puct(), Stop(12), DISCOUNT)


class Host:
    """What a callback asks of a trainer before the first update."""

    global_rank = 0


def model_of(bootstrap) -> MuZero:
    """A model whose target network differs from the one that learns."""
    model = wake(make(bootstrap=bootstrap, target_every=5, unroll=2))
    for parameter in model.target.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("bootstrap", "rows"), [("target", 3), ("root_value", 6)])
def test_a_fraction_of_the_windows_is_searched_again_by_the_target_network(bootstrap, rows):
    model, batch = model_of(bootstrap), play(8)
    callback = Reanalyse(0.5, SEARCH)
    callback.on_fit_start(Host(), model)
    fresh = callback.reanalyse(model, batch)
    assert callback.searched == 4 * rows
    with torch.no_grad():
        roots = model.target.represent(batch.observation[:4, :rows].flatten(0, 1))
        found = SEARCH.run(roots, model.target, NetworkEvaluator(model.target, model.target.policy))
    policy = torch.from_numpy(found.policy).view(4, rows, -1)
    assert torch.allclose(fresh.extras["search_policy"][:4, :rows], policy, atol=1e-6)
    assert torch.equal(fresh.extras["search_policy"][4:], batch.extras["search_policy"][4:])
    assert torch.equal(fresh.extras["search_policy"][:, rows:], batch.extras["search_policy"][:, rows:])
    value = fresh.extras["root_value"]
    if bootstrap == "root_value":
        assert torch.allclose(value[:4], torch.from_numpy(found.value).view(4, rows), atol=1e-6)
        value = value[4:]
    stored = batch.extras["root_value"][-len(value) :]
    assert torch.equal(value, stored)
    assert not torch.equal(fresh.extras["search_policy"], batch.extras["search_policy"])


def test_what_it_draws_goes_on_where_it_stopped():
    callback = Reanalyse(1.0, SEARCH)
    callback.on_fit_start(Host(), model_of("target"))
    callback.reanalyse(model_of("target"), play(4))
    callback.generator.random(5)
    other = Reanalyse(1.0, SEARCH)
    other.load_state_dict(callback.state_dict())
    other.on_fit_start(Host(), model_of("target"))
    assert other.searched == callback.searched > 0
    np.testing.assert_array_equal(other.generator.random(3), callback.generator.random(3))


def named(batch, row: int = 0):
    """The batch as prioritised sampling draws it: windows that overlap, of two environments."""
    windows, rows = batch.shape
    env = (torch.arange(windows) % 2)[:, None].expand(batch.shape)
    return batch.replace(extras=batch.extras | {"env": env, "row": row + torch.arange(rows).expand(batch.shape)})


def reusing(model, fraction=1.0) -> Reanalyse:
    callback = Reanalyse(fraction, SEARCH, reuse=True)
    host = Host()
    host.datamodule = SimpleNamespace(
        sampling=Sampling(prioritised=Prioritised(0.0)), store=SimpleNamespace(num_envs=2, capacity=50)
    )
    callback.on_fit_start(host, model)
    return callback


def test_a_row_is_searched_once_per_copy_of_the_target_network():
    model = model_of("target")
    pair = play(2)
    batch = named(pair[[0, 1, 0, 1]])
    callback = reusing(model)
    first = callback.reanalyse(model, batch)
    assert callback.searched == 2 * 3, "two windows are the same rows again"
    assert torch.equal(first.extras["search_policy"][:2], first.extras["search_policy"][2:])
    plain = Reanalyse(1.0, SEARCH)
    plain.on_fit_start(Host(), model)
    expected = plain.reanalyse(model, batch)
    assert torch.allclose(first.extras["search_policy"], expected.extras["search_policy"], atol=1e-6)
    assert torch.allclose(model.compute_targets(first).value, model.compute_targets(expected).value, atol=1e-6)
    for parameter in model.networks.parameters():
        torch.nn.init.normal_(parameter, std=0.4)  # what learns may change: the target network answers
    again = callback.reanalyse(model, batch)
    assert callback.searched == 6
    assert torch.equal(again.extras["search_policy"], first.extras["search_policy"])
    for _ in range(model.target_every):
        model.updated()
    fresh = callback.reanalyse(model, batch)
    assert callback.searched == 12
    assert not torch.allclose(fresh.extras["search_policy"][:, :3], first.extras["search_policy"][:, :3])
    assert not torch.allclose(fresh.extras["target_value"], first.extras["target_value"])


def test_a_ring_that_came_round_names_other_rows():
    model = model_of("target")
    callback, pair = reusing(model), play(2)
    callback.reanalyse(model, named(pair))
    callback.reanalyse(model, named(play(2), row=50))  # the same slots
    assert callback.searched == 12
    callback.reanalyse(model, named(pair))
    assert callback.searched == 18


def test_results_are_kept_in_checkpoints():
    model, batch = model_of("target"), named(play(2))
    callback = reusing(model)
    first = callback.reanalyse(model, batch)
    other = Reanalyse(1.0, SEARCH, reuse=True)
    other.load_state_dict(callback.state_dict())
    host = Host()
    host.datamodule = SimpleNamespace(
        sampling=Sampling(prioritised=Prioritised(0.0)), store=SimpleNamespace(num_envs=2, capacity=50)
    )
    other.on_fit_start(host, model)
    again = other.reanalyse(model, batch)
    assert other.searched == callback.searched
    for name in ("search_policy", "target_value"):
        assert torch.equal(again.extras[name], first.extras[name])


def test_rows_without_names_cannot_be_told_apart():
    host = Host()
    host.datamodule = SimpleNamespace(sampling=Sampling(), store=None)
    with pytest.raises(UserError, match=r"reuse needs .* data\.sampling\.prioritised"):
        Reanalyse(1.0, SEARCH, reuse=True).on_fit_start(host, model_of("target"))


def test_mistakes_get_one_line():
    with pytest.raises(UserError, match="fraction must be above 0"):
        Reanalyse(0.0, SEARCH)
    with pytest.raises(UserError, match="learns from searches, MuZero: got Agent"):
        Reanalyse(1.0, SEARCH).on_fit_start(Host(), agent())
    with pytest.raises(UserError, match="set it to null"):
        Reanalyse(1.0, Search(Puct(), Stop(4), 0.5)).on_fit_start(Host(), model_of("target"))
