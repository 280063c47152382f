import pytest
import torch
from torch import nn

from modules.errors import UserError
from modules.layers.networks import body, impala, minmax, nature, output_shape


def test_pictures_of_84_pixels_are_seen_as_by_mnih_et_al():
    network, width = body((4, 84, 84), hidden=[512])
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    ]
    assert next(layer for layer in network if isinstance(layer, nn.Linear)).in_features == 64 * 7 * 7
    assert width == 512
    assert network(torch.rand(3, 4, 84, 84)).shape == (3, 512)


@pytest.mark.parametrize("size", [(42, 42), (64, 64), (105, 80), (210, 160)])
def test_pictures_of_other_sizes_leave_about_as_much(size):
    network, width = body((3, *size), hidden=[])
    seen = network[:-1](torch.rand(2, 3, *size))
    assert 6 <= min(seen.shape[2:]) <= 8
    assert network(torch.rand(2, 3, *size)).shape == (2, width)


@pytest.mark.parametrize(("size", "stride", "left"), [(42, 3, 3), (84, 8, 1), (27, 3, 1), (42, None, 7)])
def test_a_larger_stride_leaves_less(size, stride, left):
    assert output_shape(nature((4, size, size), (2, 3, 5), stride=stride), (4, size, size)) == (5, left, left)


def test_a_stride_that_is_too_large_for_the_picture():
    with pytest.raises(UserError, match="at least 45 pixels: got 60 x 44") as raised:
        nature((4, 60, 44), (2, 3, 5), stride=5)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("silu", nn.SiLU), ("tanh", nn.Tanh)])
def test_vectors_go_through_fully_connected_layers(name, kind):
    network, width = body((5,), hidden=[7, 6], activation=name)
    assert [type(layer) for layer in network] == [nn.Flatten, nn.Linear, kind, nn.Linear, kind]
    assert width == 6
    assert network(torch.rand(3, 5)).shape == (3, 6)


def test_layer_norm_stands_before_every_activation_of_the_fully_connected_layers():
    network, _ = body((4, 42, 42), hidden=[16, 8], layer_norm=True)
    kinds = [type(layer) for layer in network]
    fully_connected = kinds[kinds.index(nn.Flatten) + 1 :]
    assert fully_connected == 2 * [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert nn.LayerNorm not in kinds[: kinds.index(nn.Flatten)]


def test_without_layers_features_are_seen_as_they_are():
    network, width = body((5,), hidden=[])
    features = torch.rand(3, 5)
    assert torch.equal(network(features), features)
    assert width == 5


@pytest.mark.parametrize("size", [42, 64, 84])
def test_impala_halves_the_picture_at_each_stage(size):
    network = impala((4, size, size), channels=[16, 32, 32])
    side = -(-size // 8)
    assert output_shape(network, (4, size, size)) == (32, side, side)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16] * 5 + [32] * 10
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((3, 3), (1, 1))}
    assert network(torch.rand(2, 4, size, size)).min() >= 0


def test_a_residual_block_adds_to_its_input():
    block = impala((2, 8, 8), channels=[3, 3, 3])[2]
    x = torch.randn(2, 3, 4, 4)
    for parameter in block.parameters():
        parameter.data.zero_()
    assert torch.equal(block(x), x)


def test_every_item_of_a_batch_is_scaled_to_its_own_range():
    x = torch.randn(5, 3, 4, 4) * torch.tensor([0.0, 1.0, 10.0, 1.0, 100.0])[:, None, None, None] + 7
    found = minmax(x)
    assert found.shape == x.shape
    assert torch.equal(found[0], torch.zeros(3, 4, 4)), "one that is constant"
    for item, scaled in zip(x[1:], found[1:], strict=True):
        assert torch.allclose(scaled, (item - item.min()) / (item.max() - item.min()), atol=1e-6)
