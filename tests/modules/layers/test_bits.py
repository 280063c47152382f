import pytest
import torch

from modules.layers.bits import Posterior, Prior, binarize
from modules.layers.unet import UNetSize


def make_prior(inputs=3, bits=24) -> Prior:
    torch.manual_seed(0)
    return Prior(inputs, bits, width=16)


def random_bits(*shape: int) -> torch.Tensor:
    return torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)


def test_bits_are_signs_and_their_gradient_is_that_of_tanh():
    logits = torch.randn(50, 16, requires_grad=True)
    bits, weight = binarize(logits), torch.randn(50, 16)
    assert torch.equal(bits.detach(), torch.where(logits > 0, 1.0, -1.0))
    (bits * weight).sum().backward()
    torch.testing.assert_close(logits.grad, weight * (1 - logits.detach().tanh() ** 2))


def test_flips_turn_the_asked_fraction_over_with_their_gradients():
    logits = torch.full((20_000,), 2.0, requires_grad=True)
    bits = binarize(logits, flips=0.1)
    bits.sum().backward()
    flipped = bits < 0
    assert abs(flipped.float().mean().item() - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    assert torch.equal(logits.grad < 0, flipped)


def test_noise_turns_over_what_is_uncertain():
    logits = torch.tensor([0.2, 3.0]).repeat(20_000, 1)
    wrong = (binarize(logits, noise=0.2) < 0).float().mean(dim=0)
    assert abs(wrong[0].item() - 0.1587) < 0.02, "one standard deviation from 0"
    assert wrong[1] == 0


def test_words_are_eight_bits_and_back():
    prior = make_prior()
    words = torch.randint(256, (100, 3))
    bits = prior.bits(words)
    assert bits.shape == (100, 24)
    assert torch.equal(bits.abs(), torch.ones(100, 24))
    assert torch.equal(prior.words(bits), words)
    assert prior.bits(torch.tensor([[1, 0, 128]]))[0].gt(0).nonzero().flatten().tolist() == [0, 23]


def test_a_word_is_predicted_from_those_before_it_and_no_other():
    prior, seen = make_prior(), torch.randn(1, 3)
    bits = random_bits(1, 24)

    def word_losses(bits: torch.Tensor) -> list[float]:
        losses = []
        for number in (1, 2, 3):  # a prior of fewer words, with the same weights, sums fewer of them
            losses.append(number * prior.losses(seen, bits[:, : 8 * number]).item())
        return [losses[0], losses[1] - losses[0], losses[2] - losses[1]]

    before = word_losses(bits)
    for changed in range(3):
        other = bits.clone()
        other[:, 8 * changed + 5] *= -1
        after = word_losses(other)
        for word in range(3):
            same = after[word] == pytest.approx(before[word], abs=1e-6)
            assert same == (word < changed), (changed, word)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_have_the_probabilities_that_the_losses_say(temperature):
    prior, number = make_prior(bits=16), 4000
    with torch.no_grad():
        prior.logits.weight.mul_(8)  # far from uniform, and what follows far from independent
        prior.embed.weight.mul_(3)
    seen = torch.randn(1, 3)
    words = prior.words(prior.sample(seen.expand(number, -1), temperature))
    output, memory = prior.lstm(prior.embed(torch.tensor([[256]])), prior._episode_start(seen))
    first = (prior.logits(output)[0, 0] / temperature).softmax(dim=0)
    commonest = first.argmax()
    output, _ = prior.lstm(prior.embed(commonest[None, None]), memory)
    second = (prior.logits(output)[0, 0] / temperature).softmax(dim=0)
    opened = words[words[:, 0] == commonest]
    for probability, drawn in ((first, words[:, 0]), (second, opened[:, 1])):
        frequency = torch.bincount(drawn, minlength=256) / len(drawn)
        assert (frequency - probability).abs().max() < 5 * (0.25 / len(drawn)) ** 0.5
    if temperature == 1.0:
        pair = torch.cat([commonest[None], second.argmax()[None]])[None]
        expected = -(first[pair[0, 0]].log() + second[pair[0, 1]].log()) / 2
        torch.testing.assert_close(prior.losses(seen, prior.bits(pair))[0], expected)


def test_at_temperature_0_every_word_is_the_likeliest():
    prior, seen = make_prior(), torch.randn(5, 3)
    bits = prior.sample(seen, 0)
    assert torch.equal(bits, prior.sample(seen, 0))
    assert torch.equal(bits, prior.sample(seen, 1e-4))
    assert (bits[0] != bits[1]).any()


def test_the_posterior_sees_the_picture_its_successor_and_the_condition():
    torch.manual_seed(0)
    posterior = Posterior(5, 12, 11, 3, UNetSize(patch=2, channels=(4, 6, 8)), 16)
    x, condition = torch.randn(2, 5, 12, 11, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    logits = posterior(x, condition)
    assert logits.shape == (2, 16)
    logits[0].sum().backward()
    assert (x.grad[0].abs().amax(dim=(1, 2)) > 0).all()
    assert (condition.grad[0] != 0).all()
    assert (x.grad[1] == 0).all()
