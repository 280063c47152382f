"""What takes an optimizer, another precision or a compiler."""

import shutil
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from modules.frames.unet import SIZES, UNet
from modules.layers.unet import UNetSize
from pipelines.dreams.metrics import dream, per_horizon
from tests.fakes import SPEC, play
from tests.grouped import grouped
from tests.modules.frames.test_unet import GROUPS


def make(**options) -> UNet:
    torch.manual_seed(0)
    model = UNet(**grouped({"size": "debug", "levels": 4, **options}, **GROUPS))
    model.build_from(SPEC)
    return model.train()


def test_a_few_hundred_updates_learn_a_tiny_world(tmp_path):
    """Short episodes that open anywhere; held-out rows are of another environment."""
    store = play(tmp_path / "store", 1500, num_envs=5, limit=6)
    env, start = store.windows(4, "validation")
    validation_windows = store.gather(env[::2], start[::2], 4, frame_stack=4)
    generator = np.random.default_rng(0)
    model = make(size="small", unroll=1)
    model.refit(store.sample(generator, 64, 2, frame_stack=4))
    before = per_horizon(dream(model.eval(), validation_windows, context=2))[0]
    updates = 450
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, 2 * (1 - i / updates)))
    model.train()
    for _ in range(updates):
        loss = model.loss(store.sample(generator, 64, 3, frame_stack=4)).total
        optimizer.zero_grad()
        loss.backward()
        for part in model.gradient_parts():
            torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.updated()
    assert before["changed"] == pytest.approx(before["copy_changed"], rel=0.1), "it began as the copy"
    one_step, two_steps = per_horizon(dream(model.eval(), validation_windows, context=2))
    for row, tolerance in ((one_step, 0.08), (two_steps, 0.15)):
        assert row["changed"] < tolerance * row["copy_changed"]
        assert row["either"] < tolerance * row["copy_either"]
        assert row["rewards"] == row["terminations"] > 15
        for name in ("reward", "termination"):
            assert row[f"{name}_auc"] > 0.95, name
            assert row[f"{name}_p_event"] > 0.7, name


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    store = play(tmp_path_factory.mktemp("dots") / "store", 60, limit=9)
    env, start = np.meshgrid(np.arange(4), np.arange(0, 50, 13), indexing="ij")
    return store.gather(env.ravel(), start.ravel(), 5, frame_stack=4)


def learn(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total = model.loss(batch).total
    total.backward()
    return {"loss": total.detach()} | {name: p.grad.float() for name, p in model.named_parameters()}


def angle(a: dict, b: dict) -> float:
    """The cosine between two gradients."""
    a, b = (torch.cat([x.flatten() for name, x in grads.items() if name != "loss"]) for grads in (a, b))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("frame_loss", ["categorical", "l2"])
def test_bfloat16_is_close_to_float32(windows, frame_loss):
    model = make(frame_loss=frame_loss, unroll=2)
    state, action = model.encode(windows)[:, 1], windows.action[:, 1]
    exact, exact_step = learn(model, windows), model.step(state, action)
    with torch.autocast("cpu", torch.bfloat16):
        frame, _, reward, continuation = model.predict(state, action)
        rough, rough_step = learn(model, windows), model.step(state, action)
    assert frame.dtype == reward.dtype == continuation.dtype == rough["loss"].dtype == torch.float32
    torch.testing.assert_close(rough["loss"], exact["loss"], rtol=0.05, atol=1e-3)
    assert angle(exact, rough) > 0.98
    assert rough_step.state.dtype == torch.uint8
    assert (rough_step.state.int() - exact_step.state.int()).abs().float().mean() < 2
    torch.testing.assert_close(rough_step.continuation, exact_step.continuation, rtol=0.05, atol=0.02)


def compare_compiled(windows) -> UNet:
    plain, compiled = make(unroll=1), make(unroll=1, compile=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys(), "checkpoints are the same"
    compiled.load_state_dict(plain.state_dict())
    expected, found = learn(plain, windows), learn(compiled, windows)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-4, atol=1e-5)
    assert angle(expected, found) > 0.9999
    return compiled


def test_the_compilers_graph_is_whole_and_close_to_the_plain_network(windows, monkeypatch):
    """All of torch.compile but the generated code, which takes a minute."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compile_with = partialmethod(torch.nn.Module.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    compare_compiled(windows)
    assert len(graphs) == 3, "encoder, decoder, outcomes"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_is_close_to_the_plain_one(windows, monkeypatch):
    monkeypatch.setitem(SIZES, "debug", UNetSize(patch=4, channels=(8, 8)))  # the compiler takes its time per level
    compare_compiled(windows)
