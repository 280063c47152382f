import pytest
import torch
import torch.nn.functional as F

from modules.batch import Batch
from modules.layers.outcomes import Outcomes

COARSEST, FINEST = (6, 2, 3), (4, 9, 11)


def make(reward_loss="categorical", balance=0.5) -> Outcomes:
    torch.manual_seed(0)
    return Outcomes(COARSEST, FINEST, reward_loss, balance, width=8)


def rows(reward: torch.Tensor, continuation: torch.Tensor, is_last: torch.Tensor) -> Batch:
    no = torch.zeros_like(is_last)
    return Batch(torch.zeros_like(reward, dtype=torch.int64), reward, continuation, no, is_last)


def a_few_rewards() -> Batch:
    """200 executed actions: 2 earn -1, 8 earn 5, 20 end the episode; what is not executed does not count."""
    reward, continuation, is_last = torch.zeros(210), torch.ones(210), torch.zeros(210, dtype=torch.bool)
    reward[:2], reward[2:10], continuation[100:120] = -1, 5, 0
    is_last[200:], reward[200:], continuation[200:] = True, -1, 0
    return rows(*(tensor.view(10, 21) for tensor in (reward, continuation, is_last)))


@pytest.mark.parametrize("reward_loss", ["categorical", "real"])
def test_the_losses_are_their_formulas(reward_loss):
    outcomes = make(reward_loss)
    reward, continuation = torch.tensor([-3.0, 0.0, 0.5, 8.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    output, logit = outcomes(torch.randn(4, *COARSEST), torch.randn(4, *FINEST))
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


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_weights_are_powers_of_the_frequencies_and_a_row_weighs_one_on_average(balance):
    outcomes = make(balance=balance)
    outcomes.refit(a_few_rewards())
    for weights, counts in (
        (outcomes.reward_weights, torch.tensor([3.0, 191.0, 9.0])),
        (outcomes.continuation_weights, torch.tensor([21.0, 181.0])),
    ):
        frequency = counts / counts.sum()
        torch.testing.assert_close(weights / weights[1], (frequency / frequency[1]) ** -balance)
        torch.testing.assert_close((weights * frequency).sum(), torch.tensor(1.0))
    assert outcomes.reward_losses(torch.zeros(1, 3), torch.ones(1)).isfinite()


def test_a_class_that_never_occurred_has_a_finite_weight():
    outcomes = make(balance=1.0)
    outcomes.refit(rows(torch.zeros(5, 9), torch.ones(5, 9), torch.zeros(5, 9, dtype=torch.bool)))
    assert outcomes.reward_weights.isfinite().all()
    assert outcomes.continuation_weights.isfinite().all()


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_probabilities_are_right_whatever_the_balance(balance):
    """Where nothing tells the outcomes apart, the least loss gives every class its frequency."""
    outcomes, batch = make(balance=balance), a_few_rewards()
    outcomes.refit(batch)
    executed = ~batch.is_last
    reward, continuation = batch.reward[executed], batch.continuation[executed]
    output, logit = torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([output, logit], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = outcomes.reward_losses(output.expand(200, 3), reward).mean()
        loss = loss + outcomes.continuation_losses(logit.expand(200), continuation).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(output.softmax(dim=0), torch.tensor([0.01, 0.95, 0.04]), atol=2e-3, rtol=0)
    torch.testing.assert_close(logit.sigmoid(), torch.tensor(0.9), atol=2e-3, rtol=0)
    assert outcomes.expected_reward(output[None]).item() == pytest.approx(0.03, abs=2e-3)


def test_an_untrained_head_starts_near_the_frequencies_where_classes_weigh_the_same():
    outcomes = make(balance=1.0)
    torch.nn.init.zeros_(outcomes.read[-1].weight)
    torch.nn.init.zeros_(outcomes.read[-1].bias)
    outcomes.refit(a_few_rewards())
    output, logit = outcomes(torch.randn(2, *COARSEST), torch.randn(2, *FINEST))
    torch.testing.assert_close(output.softmax(dim=1)[0], torch.tensor([3.0, 191.0, 9.0]) / 203)
    torch.testing.assert_close(logit.sigmoid()[0], torch.tensor(181 / 202))


@pytest.mark.parametrize("place", [(0, 0), (4, 5), (8, 10)])
def test_one_fine_pixel_anywhere_is_seen_and_told_from_another_place(place):
    outcomes = make()
    coarsest, nothing = torch.zeros(1, *COARSEST), torch.zeros(1, *FINEST)
    torch.nn.init.normal_(outcomes.position)
    dot, other = nothing.clone(), nothing.clone()
    dot[:, :, *place] = 5.0
    other[:, :, 3, 2] = 5.0
    seen = [outcomes(coarsest, fine)[0] for fine in (nothing, dot, other)]
    assert not torch.allclose(seen[1], seen[0])
    assert not torch.allclose(seen[1], seen[2])


def test_every_parameter_gets_a_gradient_from_both_losses():
    for index in (0, 1):
        outcomes = make()
        output = outcomes(torch.randn(3, *COARSEST), torch.randn(3, *FINEST))[index]
        loss = F.mse_loss(output, torch.ones_like(output))
        loss.backward()
        assert all((p.grad != 0).any() for p in outcomes.parameters())
