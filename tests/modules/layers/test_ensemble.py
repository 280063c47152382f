import pytest
import torch
from torch import nn

from modules.layers.ensemble import EnsembleLinear, EnsembleMLP


@pytest.fixture
def network() -> EnsembleMLP:
    return EnsembleMLP(members=4, inputs=5, hidden=16, layers=2, outputs=3)


def layers(network: EnsembleMLP) -> list[EnsembleLinear]:
    return [network.input, *network.hidden, network.output]


def plain(network: EnsembleMLP, member: int) -> nn.Sequential:
    """One member as PyTorch would write it."""
    modules: list[nn.Module] = []
    for layer in layers(network):
        linear = nn.Linear(*layer.weight.shape[1:])
        linear.weight.data, linear.bias.data = layer.weight[member].T, layer.bias[member]
        modules += [linear, nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def test_members_computed_together_are_plain_perceptrons(network):
    x = torch.randn(4, 10, 5)
    together = network(x)
    assert together.shape == (4, 10, 3)
    for member in range(4):
        alone = plain(network, member)(x[member])
        torch.testing.assert_close(together[member], alone)
        torch.testing.assert_close(network(x[member], member), alone)


@pytest.mark.parametrize("counts", [[0, 0, 1, 0], [3, 0, 1, 2], [20, 20, 20, 20]])
def test_every_group_of_rows_goes_through_its_own_member(network, counts):
    x = torch.randn(sum(counts), 5, requires_grad=True)
    expected = torch.cat([plain(network, m)(rows) for m, rows in enumerate(x.split(counts))])
    output = network.by_group(x, counts)
    torch.testing.assert_close(output, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients)


def test_members_start_apart_and_as_linear_layers_do():
    for layer in layers(EnsembleMLP(members=30, inputs=100, hidden=50, layers=1, outputs=20)):
        reference = nn.Linear(*layer.weight.shape[1:])
        for drawn, expected in ((layer.weight, reference.weight), (layer.bias, reference.bias)):
            assert drawn.std().item() == pytest.approx(reference.in_features**-0.5 / 3**0.5, rel=0.05)
            assert drawn.abs().max() <= expected.abs().max() * 1.2
        assert len({member.sum().item() for member in layer.weight}) == 30


def test_biases_are_spared_by_weight_decay(network):
    assert {p.ndim for name, p in network.named_parameters() if "bias" in name} == {1}


def test_inputs_and_outputs_are_transformed_exactly(network):
    x, scale, shift = torch.randn(4, 10, 5), torch.rand(5) + 0.5, torch.randn(5)
    before = network(scale * x + shift)
    network.transform_inputs(scale, shift)
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)
    scale, shift = torch.rand(3) + 0.5, torch.randn(3)
    network.transform_outputs(scale, shift)
    torch.testing.assert_close(network(x), scale * before + shift, rtol=1e-4, atol=1e-5)
