from itertools import pairwise

import pytest
import torch

from modules.layers.unet import ActionInjection, UNet, UNetSize

NUM_ACTIONS = 5


def network(inputs=4, height=21, width=18, outputs=6, patch=2, channels=(6, 8, 10, 12), **options) -> UNet:
    size = UNetSize(patch=patch, channels=channels, **options)
    return UNet(inputs, height, width, outputs, 3, NUM_ACTIONS, size).eval()


def one_hot(action: int, batch_size: int = 1) -> torch.Tensor:
    return torch.eye(NUM_ACTIONS)[[action] * batch_size]


@pytest.mark.parametrize(("inputs", "height", "width"), [(4, 84, 84), (12, 105, 80), (4, 210, 160), (3, 13, 7)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_any_picture_comes_out_at_its_own_size(inputs, height, width, patch):
    net = network(inputs, height, width, 3, patch, (4, 6, 8))
    picture, outcome = net(torch.rand(2, inputs, height, width), one_hot(1, 2))
    assert picture.shape == (2, 3, height, width)
    assert outcome.shape == (2, 3)


@pytest.mark.parametrize("kept", ["middle", "up 0", "up 1", "up 2"])
def test_the_action_reaches_every_pixel_through_every_level(kept):
    net = network()
    injections = {"middle": net.middle_action} | {f"up {i}": up.action for i, up in enumerate(net.ups)}
    assert len(injections) == sum(isinstance(module, ActionInjection) for module in net.modules())
    with torch.no_grad():
        for name, injection in injections.items():
            if name != kept:
                injection.gain.weight.zero_()
                injection.shift.weight.zero_()
        x = torch.randn(1, 4, 21, 18)
        pictures = [net(x, one_hot(action)) for action in range(NUM_ACTIONS)]
    for (a, outcome_a), (b, outcome_b) in pairwise(pictures):
        assert ((a - b).abs().amax(dim=1) > 0).all()
        assert (outcome_a != outcome_b).all()


def test_without_injections_the_action_changes_nothing():
    net = network()
    with torch.no_grad():
        for injection in [net.middle_action, *(up.action for up in net.ups)]:
            injection.gain.weight.zero_()
            injection.shift.weight.zero_()
        x = torch.randn(1, 4, 21, 18)
        assert torch.equal(net(x, one_hot(0))[0], net(x, one_hot(3))[0])


def test_the_injection_is_a_gain_and_a_shift_per_channel():
    injection = ActionInjection(NUM_ACTIONS, 3)
    x, action = torch.randn(2, 3, 4, 5), one_hot(2, 2)
    out = injection(x, action)
    for channel in range(3):
        gain = torch.sigmoid(injection.gain.weight[channel, 2] + injection.gain.bias[channel])
        shift = injection.shift.weight[channel, 2] + injection.shift.bias[channel]
        torch.testing.assert_close(out[:, channel], x[:, channel] * gain + shift)


@pytest.mark.parametrize(("height", "width", "patch"), [(21, 18, 2), (13, 7, 4), (84, 84, 1)])
def test_every_parameter_and_the_action_get_a_finite_gradient(height, width, patch):
    net = network(height=height, width=width, patch=patch).train()
    action = one_hot(1, 2).requires_grad_()
    picture, outcome = net(torch.randn(2, 4, height, width), action)
    (picture.square().mean() + outcome.square().mean()).backward()
    for name, parameter in [*net.named_parameters(), ("action", action)]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_pictures_of_a_batch_do_not_mix():
    net = network()
    x, action = torch.randn(3, 4, 21, 18), torch.eye(NUM_ACTIONS)[:3]
    together, outcomes = net(x, action)
    for i in range(3):
        picture, outcome = net(x[i : i + 1], action[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], picture)
        torch.testing.assert_close(outcomes[i : i + 1], outcome)


def test_dropout_acts_only_while_training():
    net = network(dropout=0.3, residual_dropout=0.5)
    x = torch.randn(1, 4, 21, 18)
    assert torch.equal(net(x, one_hot(0))[0], net(x, one_hot(0))[0])
    net.train()
    assert not torch.equal(net(x, one_hot(0))[0], net(x, one_hot(0))[0])
