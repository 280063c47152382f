"""A dot that jumps to the left or to the right by chance, whatever is done."""

import io
from dataclasses import replace

import pytest
import torch

from modules.batch import Batch, stack
from modules.errors import UserError
from modules.frames.stochastic_unet import Bits, StochasticUNet
from modules.frames.unet import FrameLoss, UNet
from modules.imagination import imagine
from modules.world_model import Spec
from tests.grouped import grouped
from tests.modules.frames.test_unet import FRAME, GROUPS

SIZE, GROUND, DOT = 12, 50, 200
SPEC = Spec((1, SIZE, SIZE), 2, 2)


def draw(x: torch.Tensor) -> torch.Tensor:
    """(B, T) positions to (B, T, 1, SIZE, SIZE) frames."""
    frames = torch.full((*x.shape, 1, SIZE, SIZE), GROUND, dtype=torch.uint8)
    frames[:, :, 0, 5] = torch.where(torch.arange(SIZE) == x[..., None] % SIZE, DOT, GROUND).to(torch.uint8)
    return frames


def jumps(batch_size: int, length: int) -> Batch:
    """Rows of an endless walk over a ring; a jump to the right earns 1."""
    right = torch.rand(batch_size, length) < 0.5
    x = torch.randint(SIZE, (batch_size, 1)) + (2 * right.long() - 1).cumsum(dim=1)
    flags = torch.zeros(batch_size, length, dtype=torch.bool)
    return Batch(
        action=torch.randint(2, (batch_size, length)),
        reward=right.roll(-1, dims=1).float(),
        continuation=torch.ones(batch_size, length),
        is_first=flags,
        is_last=flags.clone(),
        observation=stack(draw(x), flags, SPEC.frame_stack),
    )


def make(cls=StochasticUNet, **options) -> UNet:
    torch.manual_seed(0)
    groups = dict(GROUPS)
    if cls is StochasticUNet:
        fields = {f"bit_{name}": name for name in ("noise", "flips", "dropout")} | {"prior_weight": "prior_weight"}
        groups |= {"bits": (Bits(16), fields), "frame": (FrameLoss(clip=0.03), FRAME)}
    model = cls(**grouped({"size": "debug", "levels": 2, "unroll": 1, **options}, **groups))
    model.build_from(SPEC)
    return model.train()


def train(model: UNet, updates: int) -> UNet:
    model.refit(jumps(200, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, 2 * (1 - i / updates)))
    for _ in range(updates):
        loss = model.loss(jumps(64, 4)[:, :3]).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.updated()
    return model.eval()


def dreams(model: UNet, number: int, steps: int) -> tuple[torch.Tensor, Batch]:
    """Dreamed frames (number, steps, SIZE, SIZE) from one state, with the dot at 5."""
    seen = draw(torch.tensor([[4, 5]]))
    state = model.join(seen.flatten(1, 2), torch.zeros(1, dtype=torch.int64)).expand(number, -1)
    dream = imagine(model, None, state, steps, actions=torch.zeros(number, steps, dtype=torch.int64))
    return torch.stack([model.newest(each)[:, 0] for each in dream.state.unbind(1)[1:]], dim=1), dream


@pytest.mark.slow
def test_dreams_show_each_future_about_as_often_as_it_comes_and_one_at_a_time():
    model = train(make(), 300)
    frames, dream = dreams(model, 600, 4)
    crisp = (frames == DOT).flatten(2).sum(dim=2) == 1
    assert crisp[:, 0].float().mean() > 0.9
    assert crisp.all(dim=1).float().mean() > 0.7
    left, right = (frames[:, 0, 5, x] == DOT for x in (4, 6))
    assert (left | right).float().mean() > 0.95
    assert 0.35 < right.float().mean() < 0.65
    earned = dream.reward[:, 0]
    assert earned[right].mean() > 0.8, "what was drawn decides what is earned"
    assert earned[left].mean() < 0.2
    model.temperature = 0.0
    assert (dreams(model, 5, 3)[0] == dreams(model, 1, 3)[0]).all()


def test_a_deterministic_model_dreams_one_future_at_most():
    frames, dream = dreams(train(make(UNet), 100), 50, 1)
    assert (frames == frames[:1]).all()
    assert ((dream.reward[:, 0] > 0.2) & (dream.reward[:, 0] < 0.8)).all()


def test_the_posterior_the_prior_and_the_rest_all_learn():
    model = make(unroll=2)
    total, parts, *_ = model.loss(jumps(8, 4))
    total.backward()
    assert {"frame", "reward", "continuation", "prior", "loss", "horizon"} == parts.keys()
    expected = parts["frame"] + parts["reward"] + parts["continuation"]
    torch.testing.assert_close(total.detach(), expected + model.bits.prior_weight * parts["prior"])
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_the_priors_loss_does_not_teach_the_posterior():
    model = make(prior_weight=1e6)
    batch = jumps(8, 3)
    gradients = []
    for weight in (1e6, 0.0):
        model.bits = replace(model.bits, prior_weight=weight)
        model.zero_grad()
        torch.manual_seed(1)
        model.loss(batch).total.backward()
        gradients.append([parameter.grad.clone() for parameter in model.posterior.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_the_bits_of_a_closing_frame_teach_nothing():
    """At an end the bits are the prior's: the posterior's would give the end away."""
    model, batch = make(bit_dropout=0.0), jumps(8, 3)
    batch.continuation[:, 1] = 0
    batch.is_last[:, 2] = True
    results = []
    for frame in (batch.observation, 255 - batch.observation):
        closing = batch.observation.clone()
        closing[:, 2] = frame[:, 2]
        torch.manual_seed(1)
        total, parts, *_ = model.loss(batch.replace(observation=closing))
        results.append((total, parts["prior"], parts["continuation"]))
    assert all(map(torch.equal, *results))
    assert results[0][1] == 0
    assert results[0][2] > 0


def test_noise_flips_and_missing_bits_are_for_training_alone():
    logits = torch.randn(2000, 16)
    clean = torch.where(logits > 0, 1.0, -1.0)
    model = make(bit_noise=0.0, bit_flips=0.1, bit_dropout=0.2)
    bits = model.disturbed(logits)
    missing = (bits == 0).all(dim=1)
    assert torch.equal(missing, (bits == 0).any(dim=1)), "all of a step's bits or none"
    assert abs(missing.float().mean().item() - 0.2) < 0.05
    assert abs((bits != clean)[~missing].float().mean().item() - 0.1) < 0.02
    assert torch.equal(model.eval().disturbed(logits), clean)


def test_steps_are_drawn_above_temperature_0_and_repeatable_from_the_generator():
    model = make(temperature=1.0, copy_bias=None).eval()
    with torch.no_grad():
        for up in model.decoder.ups:
            up.injection.shift.weight.mul_(10)
    state, action = model.encode(jumps(20, 3))[:, 1], torch.zeros(20, dtype=torch.int64)

    def step(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.step(state, action).state

    assert torch.equal(step(0), step(0))
    assert not torch.equal(step(0), step(1))
    assert step(0).shape == state.shape
    model.temperature = 0.0
    assert torch.equal(step(0), step(1))


def test_a_checkpoint_holds_the_posterior_and_the_prior():
    model, file = make(), io.BytesIO()
    model.refit(jumps(50, 3))
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(5)
    other = make()
    other.load_state_dict(torch.load(file, weights_only=True))
    batch, losses = jumps(6, 3), []
    for each in (model.eval(), other.eval()):
        torch.manual_seed(2)
        losses.append(torch.cat([each.loss(batch).total[None], dreams(each, 4, 2)[0].flatten().float()]))
    assert torch.equal(*losses)


@pytest.mark.parametrize("bits", [0, 12, -8])
def test_bits_come_in_words(bits):
    with pytest.raises(UserError, match="multiple of 8"):
        StochasticUNet(bits=Bits(bits))
