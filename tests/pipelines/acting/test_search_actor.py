"""Actors that search: in DotWorld, whose rules the model knows."""

import numpy as np
import pytest
import torch

from datamodules.acting import Moment
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.policies.policy import Policy
from pipelines.acting.actors import PolicyActor, SearchActor
from pipelines.acting.exploration import Exploration
from pipelines.evaluation.episodes import play
from pipelines.search.rules import Dirichlet, Gumbel, Puct, Stop
from pipelines.search.search import Search
from tests.fakes import SPEC, DotWorld, PerfectModel

ACTIONS = 4


class Ignorant(Policy):
    """Prefers to walk to the wall that costs a point, and values nothing."""

    def forward(self, features):
        logits = torch.tensor([0.0, 2.0, 0.0, 0.0])
        return logits.expand(len(features), -1), torch.zeros(len(features))


def actor(rule=None, simulations=300, noise=None, seed=0, **options) -> SearchActor:
    search = Search(rule or Puct(c1=2.0), Stop(simulations), 0.9, noise=noise)
    return SearchActor(PerfectModel(), Ignorant(), search, np.random.default_rng(seed), **options)


def frames(num: int) -> Moment:
    return Moment(DotWorld(num).reset(), np.ones(num, bool))


def test_search_does_not_lose_where_its_policy_does():
    raw = PolicyActor(PerfectModel(), Ignorant(), np.random.default_rng(0), greedy=True)
    assert [episode["return"] for episode in play(DotWorld(6, limit=40), raw)] == [-1.0] * 6
    planned = play(DotWorld(6, limit=40), actor(greedy=True))
    assert min(episode["return"] for episode in planned) >= 0


def test_it_leaves_what_it_found():
    searching = actor()
    actions, extras = searching.act(frames(5))
    found = searching.found
    assert extras["search_policy"].shape == (5, ACTIONS)
    np.testing.assert_array_equal(extras["search_policy"], found.policy)
    np.testing.assert_allclose(found.policy.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(extras["root_value"], found.value)
    assert (found.visits[np.arange(5), actions] > 0).all()


def test_temperature_and_legal_actions():
    moment = frames(400)._replace(legal_actions=np.tile([True, True, False, True], (400, 1)))
    moment.observation[:] = moment.observation[:1]
    searching = actor(simulations=20)
    actions, extras = searching.act(moment)
    assert not (actions == 2).any()
    share = extras["search_policy"][0]
    np.testing.assert_allclose(np.bincount(actions, minlength=ACTIONS) / 400, share, atol=0.08)
    searching.temperature = 0.0
    actions, _ = searching.act(moment._replace(is_first=~moment.is_first))
    assert len(set(actions.tolist())) == 1


def test_some_actions_are_random():
    moment = frames(400)._replace(legal_actions=np.tile([True, True, False, True], (400, 1)))
    moment.observation[:] = moment.observation[:1]
    best = actor(simulations=20, greedy=True).act(moment)[0]
    actions, extras = actor(simulations=20, greedy=True, exploration=Exploration(epsilon=0.6)).act(moment)
    assert not (actions == 2).any()
    assert np.mean(actions != best) == pytest.approx(0.6 * 2 / 3, abs=0.08)
    assert len(set(extras["search_policy"].argmax(axis=1).tolist())) == 1, "what the search found is left as it is"


def test_greedy_play_has_no_noise():
    for rule, noise in ((Gumbel(), None), (Puct(), Dirichlet())):
        one, other = (actor(rule, 8, noise, seed, greedy=True) for seed in (1, 2))
        observation = frames(20)
        np.testing.assert_array_equal(one.act(observation)[0], other.act(observation)[0])
        one, other = (actor(rule, 8, noise, seed) for seed in (1, 2))
        assert (one.act(observation)[1]["search_policy"] != other.act(observation)[1]["search_policy"]).any()


def test_a_model_without_rewards_is_refused():
    model = IdentityModel()
    model.build_from(SPEC)
    with pytest.raises(UserError, match="IdentityModel has no step and no reward"):
        SearchActor(model, Ignorant(), Search(), np.random.default_rng(0))
