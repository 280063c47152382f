"""The linear controller, one and many."""

import pytest
import torch

from modules.errors import UserError
from modules.learner import Loss
from modules.policies.linear import LinearController


def make(features=5, actions=3, **options) -> LinearController:
    controller = LinearController(**options)
    controller.build((features,), actions)
    return controller


def test_scores_are_those_of_each_controller():
    controller, vectors, features = make(), torch.randn(7, 18), torch.randn(7, 4, 5)
    scores = controller.scores(vectors, features)
    for p in range(7):
        weight = vectors[p].view(3, 6)
        torch.testing.assert_close(scores[p], features[p] @ weight[:, :5].T + weight[:, 5])


def test_it_acts_by_the_vector_that_it_adopted():
    controller, features = make(epsilon=0.3), torch.randn(50, 5)
    controller.adopt(torch.randn(18))
    logits, value = controller(features)
    scores = controller.scores(controller.vector[None], features[None])[0]
    assert torch.equal(logits.argmax(1), scores.argmax(1))
    probabilities = logits.exp()
    torch.testing.assert_close(probabilities.amax(1), torch.full((50,), 0.8))
    torch.testing.assert_close(probabilities.amin(1), torch.full((50,), 0.1))
    assert not value.any()
    greedy = make()
    greedy.adopt(controller.vector)
    assert greedy(features)[0].isfinite().all()


def test_pictures_are_flattened():
    controller = LinearController()
    controller.build((2, 3, 3), 4)
    assert controller(torch.randn(6, 2, 3, 3))[0].shape == (6, 4)


def test_it_has_nothing_to_descend():
    controller = make()
    assert controller.loss(None, None) == Loss(None, {})
    assert not list(controller.parameters())


def test_a_controller_of_another_action_set_is_refused():
    state = make(actions=6).state_dict()
    with pytest.raises(UserError, match=r"has 6 actions and 5 features, but this world has 3 actions .* action set"):
        make().load_state_dict(state)
    again = make(actions=6)
    again.load_state_dict(state | {"weight": torch.randn(6, 6)})
    assert again.weight.any()


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_impossible_numbers(epsilon):
    with pytest.raises(UserError, match="epsilon must be from 0 to 1"):
        LinearController(epsilon)
