import math
from types import SimpleNamespace

import pytest
import torch

from modules.errors import UserError
from modules.optimization import Optimization


def test_biases_do_not_decay():
    layer = torch.nn.Linear(2, 3)
    layer.register_parameter("frozen", torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    decaying, sparing = Optimization(0.1, 0.5).groups(layer.parameters())
    assert decaying["params"] == [layer.weight]
    assert sparing["params"] == [layer.bias]
    assert (decaying["weight_decay"], sparing["weight_decay"]) == (0.5, 0)
    assert decaying["lr"] == sparing["lr"] == 0.1


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizer_is_the_one_that_was_named(name, kind):
    chosen = Optimization(0.1, optimizer=name)
    weight = torch.nn.Parameter(torch.ones(1, 1))
    optimizer = chosen.make(chosen.groups([weight]))
    assert type(optimizer) is kind
    for _ in range(2):
        weight.grad = torch.ones(1, 1)
        optimizer.step()
    expected = {"adamw": 1 - 0.1 - 0.1, "sgd": 1 - 0.1 - 0.1 * 1.9}[name]
    assert weight.item() == pytest.approx(expected)


def test_the_learning_rate_rises_and_falls():
    factor = Optimization(warmup=4, decay=True).schedule(SimpleNamespace(estimated_stepping_batches=8))
    assert [factor(update) for update in (0, 1, 4, 8, 100)] == pytest.approx(
        [0.25, 0.5 * 0.5 * (1 + math.cos(math.pi / 8)), 0.5, 0, 0]
    )
    assert Optimization().schedule(None)(1000) == 1


def test_a_decay_needs_an_end():
    with pytest.raises(UserError, match=r"optimization\.decay needs the run's length"):
        Optimization(decay=True).schedule(SimpleNamespace(estimated_stepping_batches=math.inf))


@pytest.mark.parametrize("fused", [False, True])
def test_a_large_eps_makes_small_steps_where_gradients_are_tiny(fused):
    moved = []
    for eps in (1e-8, 1.5e-4):
        weight = torch.nn.Parameter(torch.ones(1, 1))
        chosen = Optimization(0.1, eps=eps, fused=fused)
        groups = chosen.groups([weight])
        optimizer = chosen.make(groups)
        weight.grad = torch.full((1, 1), 1e-5)
        optimizer.step()
        moved.append(1 - weight.item())
    assert moved == pytest.approx([0.1, 0.1 * 1e-5 / (1e-5 + 1.5e-4)], rel=1e-2)
    assert optimizer.param_groups[0]["fused"] is (True if fused else None)


@pytest.mark.parametrize(("name", "wrong"), [("lr", -1.0), ("weight_decay", -0.1), ("warmup", -1), ("eps", -1.0)])
def test_negative_settings(name, wrong):
    with pytest.raises(UserError, match=f"optimization.{name} must be at least 0: got -"):
        Optimization(**{name: wrong})
