"""Reanalyse on a tiny decision problem, beside a search by hand."""

import numpy as np
import pytest
import torch

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


def test_mistakes_get_one_line():
    with pytest.raises(UserError, match="fraction must be above 0"):
        Reanalyse(0.0, SEARCH)
    with pytest.raises(UserError, match="learns from searches, MuZero: got Agent"):
        Reanalyse(1.0, SEARCH).on_fit_start(Host(), agent())
    with pytest.raises(UserError, match="set it to null"):
        Reanalyse(1.0, Search(Puct(), Stop(4), 0.5)).on_fit_start(Host(), model_of("target"))
