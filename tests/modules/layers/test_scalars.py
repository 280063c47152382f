"""The invertible transform and two-hot targets against numbers that are written down by hand."""

import math

import pytest
import torch

from modules.errors import UserError
from modules.layers.scalars import Support, compress, expand, symlog, two_hot


def test_the_transform_and_its_inverse():
    assert compress(torch.tensor([0.0, 3.0, -3.0, 99.0])).tolist() == pytest.approx([0, 1.003, -1.003, 9.099], abs=1e-6)
    x = torch.cat([torch.linspace(-60_000, 60_000, 1001), torch.linspace(-1e-3, 1e-3, 101)])
    assert torch.allclose(expand(compress(x)), x, rtol=1e-5, atol=1e-6)
    assert (compress(x[:1001]).diff() > 0).all()


@pytest.mark.parametrize(
    ("x", "weights"),
    [
        (0.0, [0, 0, 1, 0, 0]),
        (1.0, [0, 0, 0, 1, 0]),
        (0.25, [0, 0, 0.75, 0.25, 0]),
        (-0.25, [0, 0.25, 0.75, 0, 0]),
        (-1.5, [0.5, 0.5, 0, 0, 0]),
        (2.0, [0, 0, 0, 0, 1]),
        (-2.0, [1, 0, 0, 0, 0]),
        (7.0, [0, 0, 0, 0, 1]),
        (-7.0, [1, 0, 0, 0, 0]),
    ],
)
def test_two_hot(x, weights):
    assert two_hot(torch.tensor(x), 5).tolist() == pytest.approx(weights)


def test_a_support_gives_back_what_it_was_given():
    support = Support(51)
    x = torch.tensor([[-640.0, -1.0, 0.0], [0.3, 17.0, 640.0]])
    weights = support.encode(x)
    assert weights.shape == (2, 3, 51)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3))
    assert torch.allclose(support.decode((weights + 1e-12).log()), x, rtol=1e-3, atol=1e-3)
    assert support.decode(torch.zeros(4, 51)).abs().max() < 1e-6, "an untrained head says 0"


def test_the_loss_is_smallest_at_the_target():
    support, logits = Support(21), torch.zeros(3, 21, requires_grad=True)
    x = torch.tensor([-2.0, 0.0, 30.0])
    weights = support.encode(x)
    gradient = torch.autograd.grad(support.losses(logits, x).sum(), logits)[0]
    assert torch.allclose(gradient, 1 / 21 - weights, atol=1e-6)


@pytest.mark.parametrize("size", [1, 50])
def test_a_support_has_a_middle(size):
    with pytest.raises(UserError, match=f"odd number of at least 3 integers around 0: got {size}"):
        Support(size)


def test_symlog_is_odd_and_flat_far_out():
    x = torch.tensor([-math.e + 1, -1e-4, 0.0, 1e-4, math.e - 1, math.exp(5) - 1])
    assert torch.allclose(symlog(x), torch.tensor([-1.0, -1e-4, 0.0, 1e-4, 1.0, 5.0]), atol=1e-6)
