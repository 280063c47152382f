from itertools import pairwise

import pytest
import torch

from modules.layers.unet import Decoder, Encoder, Injection, UNetSize

NUM_ACTIONS = 5


class UNet(torch.nn.Module):
    """Both halves under one condition."""

    def __init__(self, inputs=4, height=21, width=18, outputs=6, patch=2, channels=(6, 8, 10, 12), **options) -> None:
        super().__init__()
        size = UNetSize(patch=patch, channels=channels, **options)
        self.encoder = Encoder(inputs, height, width, NUM_ACTIONS, size)
        self.decoder = Decoder(outputs, height, width, NUM_ACTIONS, size)
        assert size.shapes(height, width) == [f.shape[1:] for f in self.see(torch.zeros(1, inputs, height, width))]

    def see(self, x):
        return self.encoder(x, torch.zeros(len(x), NUM_ACTIONS))

    def forward(self, x, action):
        return self.decoder(self.encoder(x, action), action)[0]

    def injections(self) -> list[Injection]:
        return [self.encoder.injection, *(up.injection for up in self.decoder.ups)]


def network(*args, **options) -> UNet:
    return UNet(*args, **options).eval()


def one_hot(action: int, batch_size: int = 1) -> torch.Tensor:
    return torch.eye(NUM_ACTIONS)[[action] * batch_size]


@pytest.mark.parametrize(("inputs", "height", "width"), [(4, 84, 84), (12, 105, 80), (4, 210, 160), (3, 13, 7)])
@pytest.mark.parametrize(("patch", "head"), [(1, 3), (2, 3), (4, 3), (3, 1)])
def test_any_picture_comes_out_at_its_own_size(inputs, height, width, patch, head):
    net = network(inputs, height, width, 3, patch, (4, 6, 8), head=head)
    assert net(torch.rand(2, inputs, height, width), one_hot(1, 2)).shape == (2, 3, height, width)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_the_action_reaches_every_pixel_through_every_level(kept):
    net = network()
    assert len(net.injections()) == sum(isinstance(module, Injection) for module in net.modules()) == 4
    with torch.no_grad():
        for i, injection in enumerate(net.injections()):
            if i != kept:
                injection.gain.weight.zero_()
                injection.shift.weight.zero_()
        x = torch.randn(1, 4, 21, 18)
        pictures = [net(x, one_hot(action)) for action in range(NUM_ACTIONS)]
    for a, b in pairwise(pictures):
        assert ((a - b).abs().amax(dim=1) > 0).all()


def test_without_injections_the_action_changes_nothing():
    net = network()
    with torch.no_grad():
        for injection in net.injections():
            injection.gain.weight.zero_()
            injection.shift.weight.zero_()
        x = torch.randn(1, 4, 21, 18)
        assert torch.equal(net(x, one_hot(0)), net(x, one_hot(3)))


def test_the_injection_is_a_gain_and_a_shift_per_channel():
    injection = Injection(NUM_ACTIONS, 3)
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
    net(torch.randn(2, 4, height, width), action).square().mean().backward()
    for name, parameter in [*net.named_parameters(), ("action", action)]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_pictures_of_a_batch_do_not_mix():
    net = network()
    x, action = torch.randn(3, 4, 21, 18), torch.eye(NUM_ACTIONS)[:3]
    together = net(x, action)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], net(x[i : i + 1], action[i : i + 1]))


def test_dropout_acts_only_while_training():
    net = network(dropout=0.3, residual_dropout=0.5)
    x = torch.randn(1, 4, 21, 18)
    assert torch.equal(net(x, one_hot(0)), net(x, one_hot(0)))
    net.train()
    assert not torch.equal(net(x, one_hot(0)), net(x, one_hot(0)))
