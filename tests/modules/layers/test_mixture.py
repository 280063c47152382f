"""Mixtures against torch.distributions."""

import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from modules.layers.mixture import MIN_LOG_STD, Mixture, draw, log_density, mixture


def some(*shape: int) -> Mixture:
    return Mixture(*(torch.randn(*shape, 3) for _ in range(3)))


def test_the_density_is_that_of_torch():
    made, value = some(7, 4), torch.randn(7, 4)
    known = MixtureSameFamily(Categorical(logits=made.logits), Normal(made.mean, made.log_std.exp()))
    torch.testing.assert_close(log_density(made, value), known.log_prob(value))


def test_an_output_is_read_as_logits_means_and_deviations():
    output = torch.randn(5, 3 * 4 * 2)
    made = mixture(output, 4)
    assert all(part.shape == (5, 4, 2) for part in made)
    assert torch.equal(made.mean, output[:, 8:16].view(5, 4, 2))
    assert mixture(torch.full((1, 12), -1e9), 2).log_std.min() == MIN_LOG_STD


def test_draws_have_the_moments_of_the_mixture():
    """Two components at -1 and 2, with 0.3 and 0.7 of the mass: mean 1.1, variance 0.25 + 0.21 * 9 = 2.14."""
    logits = torch.tensor([0.3, 0.7]).log().expand(100_000, 1, 2)
    made = Mixture(logits, torch.tensor([-1.0, 2.0]).expand_as(logits), torch.full_like(logits, 0.5).log())
    drawn = draw(made)
    torch.testing.assert_close(drawn.mean(), torch.tensor(1.1), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.var(), torch.tensor(2.14), atol=0.04, rtol=0)


def test_temperature_widens_and_flattens():
    """At tau 4 the odds of 9 to 1 become their fourth root, and deviations double."""
    logits = torch.tensor([0.1, 0.9]).log().expand(100_000, 1, 2)
    made = Mixture(logits, torch.tensor([-100.0, 100.0]).expand_as(logits), torch.zeros_like(logits))
    drawn = draw(made, 4.0)
    right = drawn > 0
    torch.testing.assert_close(right.float().mean(), torch.tensor(9**0.25 / (1 + 9**0.25)), atol=0.01, rtol=0)
    torch.testing.assert_close((drawn[right] - 100).std(), torch.tensor(2.0), atol=0.03, rtol=0)


def test_temperature_0_is_the_mode():
    made = some(50, 4)
    expected = made.mean.gather(2, made.logits.argmax(2, keepdim=True))[..., 0]
    assert torch.equal(draw(made, 0.0), expected)
    torch.testing.assert_close(draw(made, 1e-10), expected, atol=1e-3, rtol=0)
