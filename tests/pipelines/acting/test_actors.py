"""Policies that act, on DotWorld: what they see must be what is stored, and what they do what they say."""

import numpy as np
import pytest
import torch

from datamodules.acting import Moment
from datamodules.collector import Collector
from datamodules.replay.store import ReplayStore
from modules.batch import stack
from modules.policies.policy import Policy
from pipelines.acting.actors import PolicyActor
from pipelines.acting.exploration import Exploration
from tests.fakes import SPEC, DotWorld, PerfectModel

NUM_ENVS, ROWS, ACTIONS = 3, 150, 4
PROBABILITIES = torch.tensor([0.1, 0.2, 0.3, 0.4])


class Remembering(PerfectModel):
    """Its state is all it was ever told since an episode opened; it keeps every state and observation."""

    def build(self, spec):
        super().build(spec)
        self.state_shape = self.feature_shape = (2,)
        self.states, self.observations = [], []

    def initial(self, batch_size):
        return torch.full((batch_size, 2), 7.0)

    def observe(self, state, action, observation, is_first):
        kept = torch.where(is_first[:, None], 0.0, 0.5 * state)
        told = torch.stack([observation.float().mean(dim=(1, 2, 3)), action.float()], dim=1)
        self.states.append(kept + told)
        self.observations.append(observation)
        return kept + told

    def features(self, state):
        return state


class Fixed(Policy):
    """Plays by the same probabilities everywhere; its value is the sum of the features."""

    def forward(self, features):
        return PROBABILITIES.log().expand(len(features), -1), features.flatten(1).sum(dim=1)


class Varied(Policy):
    """Its probabilities depend on what it sees."""

    def forward(self, features):
        return torch.cat([features, -features], dim=1) / 50, features.sum(dim=1)


def actor(model=None, policy=None, seed=0, **options) -> PolicyActor:
    return PolicyActor(model or PerfectModel(), policy or Fixed(), np.random.default_rng(seed), **options)


def frames(num: int) -> Moment:
    return Moment(np.zeros((num, *SPEC.observation_shape), np.uint8), np.ones(num, bool))


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A recurrent model and a policy that played, and all the rows they left."""
    model = Remembering().train()
    store = ReplayStore.create(
        tmp_path_factory.mktemp("dots") / "store",
        observation_shape=DotWorld.observation_shape,
        num_actions=ACTIONS,
        num_envs=NUM_ENVS,
        capacity=ROWS,
        extras={"log_prob": ("float32", ()), "value": ("float32", ())},
    )
    collector, player = Collector(DotWorld(NUM_ENVS, limit=12), store), actor(model, Varied())
    for _ in range(ROWS):
        collector.step(player)
    return model, store.gather(np.arange(NUM_ENVS), np.zeros(NUM_ENVS, int), ROWS, frame_stack=SPEC.frame_stack)


def test_frames_are_stacked_as_the_store_stacks_them(played):
    model, batch = played
    seen = torch.stack(model.observations[:ROWS], dim=1)
    assert batch.is_first.sum() > 20
    assert torch.equal(seen, batch.observation)
    assert torch.equal(seen, stack(batch.observation[:, :, -1:], batch.is_first, SPEC.frame_stack))


def test_colours_and_vectors_are_stacked_too():
    model = Remembering()
    model.spec = SPEC._replace(frame_stack=3)
    pictures = np.random.default_rng(0).integers(256, size=(5, 2, 3, 4, 4)).astype(np.uint8)
    is_first = np.zeros((5, 2), bool)
    is_first[0], is_first[3, 1] = True, True
    player = actor(model)
    seen = [player._stack(Moment(picture, first))[0] for picture, first in zip(pictures, is_first, strict=True)]
    expected = stack(torch.from_numpy(pictures).transpose(0, 1), torch.from_numpy(is_first.T), 3)
    assert torch.equal(torch.stack(seen, dim=1), expected)
    player = actor(model)
    vectors = [
        player._stack(Moment(picture[:, :, 0, 0], first))[0] for picture, first in zip(pictures, is_first, strict=True)
    ]
    assert torch.equal(torch.stack(vectors, dim=1), expected[..., 0, 0])


def test_states_are_those_that_the_model_makes_of_the_stored_rows(played):
    """The action that led there counts, none where an episode opens, and nothing of the episode before."""
    model, batch = played
    acted = torch.stack(model.states[:ROWS], dim=1)
    assert torch.equal(model.encode(batch), acted)
    assert model.training


def test_the_columns_are_the_policys_own(played):
    model, batch = played
    logits, value = Varied()(model.encode(batch).flatten(0, 1))
    log_prob = logits.log_softmax(1).gather(1, batch.action.flatten()[:, None])[:, 0]
    assert torch.allclose(batch.extras["log_prob"].flatten(), log_prob, atol=1e-6)
    assert torch.allclose(batch.extras["value"].flatten(), value, atol=1e-5)
    assert log_prob.std() > 0.01


def frequencies(actions: np.ndarray) -> np.ndarray:
    return np.bincount(actions, minlength=ACTIONS) / len(actions)


def close(actions: np.ndarray, probabilities: np.ndarray) -> bool:
    deviation = np.sqrt(probabilities * (1 - probabilities) / len(actions))
    return bool((np.abs(frequencies(actions) - probabilities) <= 5 * deviation).all())


def test_actions_are_drawn_as_likely_as_the_policy_says():
    actions, extras = actor().act(frames(4000))
    assert actions.dtype == np.int64
    assert close(actions, PROBABILITIES.numpy())
    assert extras["log_prob"] == pytest.approx(PROBABILITIES.log().numpy()[actions])
    assert extras["log_prob"].dtype == extras["value"].dtype == np.float32


def test_a_greedy_actor_takes_the_likeliest():
    actions, extras = actor(greedy=True).act(frames(50))
    assert (actions == 3).all()
    assert extras["log_prob"] == pytest.approx(np.full(50, np.log(0.4)))


def test_random_actions_come_in_between():
    actions, extras = actor(greedy=True, exploration=Exploration(epsilon=0.4)).act(frames(4000))
    assert close(actions, np.array([0.1, 0.1, 0.1, 0.7]))
    assert extras["log_prob"] == pytest.approx(PROBABILITIES.log().numpy()[actions])


@pytest.mark.parametrize("options", [{}, {"greedy": True}, {"exploration": Exploration(epsilon=1.0)}], ids=str)
def test_only_legal_actions_are_taken(options):
    legal = np.zeros((4000, ACTIONS), bool)
    legal[:, [0, 2]] = True
    actions, _ = actor(**options).act(frames(4000)._replace(legal_actions=legal))
    expected = {"": [0.25, 0, 0.75, 0], "greedy": [0, 0, 1, 0], "exploration": [0.5, 0, 0.5, 0]}
    assert close(actions, np.array(expected["".join(options)], float))


@pytest.mark.parametrize("exploration", [Exploration(), Exploration(epsilon=0.5, persistence=1.5)], ids=str)
def test_draws_go_on_where_they_stopped(exploration):
    player, later = actor(seed=1, exploration=exploration), frames(20)._replace(is_first=np.zeros(20, bool))
    player.act(frames(20))
    state = player.state_dict()
    expected, _ = player.act(later)
    again = actor(seed=2, exploration=exploration)
    again.load_state_dict(state)
    assert np.array_equal(again.act(later)[0], expected)
