import pytest
import torch

from modules.batch import Batch
from modules.layers.outcomes import Outcomes

CONDITION = torch.tensor([1.0, 0.0, 0.0])


def make(reward_loss="categorical", height=19, width=22) -> Outcomes:
    torch.manual_seed(0)
    return Outcomes(4, (2, -(-height // 3), -(-width // 3)), 3, 3, reward_loss, looks=8)


def answer(outcomes, pictures, condition=CONDITION, painted=None) -> tuple[torch.Tensor, torch.Tensor]:
    if painted is None:
        painted = torch.zeros(len(pictures), 2, *outcomes.sides)
    return outcomes(pictures, painted, condition.expand(len(pictures), 3))


def a_few_rewards() -> Batch:
    """200 executed actions: 2 earn -1, 8 earn 5, 20 end the episode; what is not executed does not count."""
    reward, continuation, is_last = torch.zeros(210), torch.ones(210), torch.zeros(210, dtype=torch.bool)
    reward[:2], reward[2:10], continuation[100:120] = -1, 5, 0
    is_last[200:], reward[200:], continuation[200:] = True, -1, 0
    reward, continuation, is_last = (tensor.view(10, 21) for tensor in (reward, continuation, is_last))
    return Batch(torch.zeros(10, 21, dtype=torch.int64), reward, continuation, torch.zeros_like(is_last), is_last)


@pytest.mark.parametrize("reward_loss", ["categorical", "real"])
def test_the_losses_are_their_formulas(reward_loss):
    outcomes = make(reward_loss)
    reward, continuation = torch.tensor([-3.0, 0.0, 0.5, 8.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    output, logit = answer(outcomes, torch.rand(4, 4, 19, 22))
    assert output.shape == (4, 3 if reward_loss == "categorical" else 1)
    if reward_loss == "categorical":
        log_probability = output.log_softmax(dim=1)
        expected = -torch.stack([log_probability[i, column] for i, column in enumerate([0, 1, 2, 2])])
        sign = log_probability[:, 2].exp() - log_probability[:, 0].exp()
        torch.testing.assert_close(outcomes.expected_reward(output), sign)
    else:
        expected = (output[:, 0] - reward) ** 2
        assert torch.equal(outcomes.expected_reward(output), output[:, 0])
    torch.testing.assert_close(outcomes.reward_losses(output, reward), expected)
    probability = torch.where(continuation == 1, logit.sigmoid(), 1 - logit.sigmoid())
    torch.testing.assert_close(outcomes.continuation_losses(logit, continuation), -probability.log())


@pytest.mark.parametrize("reward_loss", ["categorical", "real"])
def test_an_untrained_head_starts_at_the_frequencies(reward_loss):
    outcomes = make(reward_loss)
    torch.nn.init.zeros_(outcomes.last.weight)
    torch.nn.init.zeros_(outcomes.last.bias)
    outcomes.start(a_few_rewards())
    output, logit = answer(outcomes, torch.rand(2, 4, 19, 22))
    if reward_loss == "categorical":
        torch.testing.assert_close(output.softmax(dim=1)[0], torch.tensor([3.0, 191.0, 9.0]) / 203)
    else:
        torch.testing.assert_close(output[0, 0], torch.tensor((8 * 5 - 2) / 200))
    torch.testing.assert_close(logit.sigmoid()[0], torch.tensor(181 / 202))


def test_what_never_occurred_remains_possible():
    outcomes, batch = make(), a_few_rewards()
    outcomes.start(batch.replace(reward=torch.zeros(10, 21), continuation=torch.ones(10, 21)))
    assert outcomes.offset.isfinite().all()


@pytest.mark.parametrize("place", [(0, 0), (9, 11), (18, 21)])
def test_one_pixel_of_one_picture_is_seen_and_told_from_another_place_and_picture(place):
    outcomes, nothing = make(), torch.zeros(1, 4, 19, 22)
    seen = [answer(outcomes, nothing)[0]]
    for picture, at in ((1, place), (2, place), (1, (6, 4))):
        pictures = nothing.clone()
        pictures[:, picture, *at] = 1
        seen.append(answer(outcomes, pictures)[0])
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(seen[i], seen[j], atol=1e-6)


def test_the_action_changes_the_answer():
    outcomes, pictures = make(), torch.rand(1, 4, 19, 22)
    assert not torch.allclose(answer(outcomes, pictures)[0], answer(outcomes, pictures, CONDITION.flip(0))[0])


def test_what_painted_the_picture_is_seen_and_learns_nothing():
    outcomes, pictures = make(), torch.rand(1, 4, 19, 22)
    painted = torch.rand(1, 2, *outcomes.sides, requires_grad=True)
    output, logit = answer(outcomes, pictures, painted=painted)
    assert not torch.allclose(output, answer(outcomes, pictures)[0])
    (output.sum() + logit.sum()).backward()
    assert painted.grad is None


@pytest.mark.parametrize(("height", "width"), [(1, 1), (12, 12), (42, 42), (105, 80), (210, 160)])
def test_pictures_of_any_size_end_on_a_small_grid(height, width):
    outcomes = make(height=height, width=width)
    reward, continuation = answer(outcomes, torch.rand(2, 4, height, width))
    assert (reward.shape, continuation.shape) == ((2, 3), (2,))
    assert outcomes.hidden.in_features <= 16 * 8 * 8 + 3


@pytest.mark.parametrize("which", ["reward", "continuation"])
def test_every_layer_gets_a_gradient_from_each_loss(which):
    outcomes = make()
    output, logit = answer(outcomes, torch.rand(3, 4, 19, 22))
    losses = {"reward": outcomes.reward_losses(output, torch.ones(3))}
    losses["continuation"] = outcomes.continuation_losses(logit, torch.zeros(3))
    losses[which].mean().backward()
    assert all((parameter.grad != 0).any() for parameter in outcomes.parameters())
