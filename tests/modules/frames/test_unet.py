import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modules.batch import Batch
from modules.errors import UserError
from modules.frames.unet import FrameLoss, UNet, Unroll
from modules.imagination import imagine
from modules.layers.quantize import nearest_level
from modules.world_model import Spec, WorldModel
from tests.fakes import SPEC, play
from tests.grouped import grouped

LAST = slice(-1, None)


FRAME = {"frame_loss": "loss", **{name: name for name in ("levels", "clip", "motion_weight", "copy_bias")}}
STEPS = {"unroll": "steps", "unroll_warmup": "warmup", "scheduled_sampling": "scheduled_sampling"}
GROUPS = {"frame": (FrameLoss(), FRAME), "unroll": (Unroll(), STEPS)}


def make(spec=SPEC, **options) -> UNet:
    torch.manual_seed(0)
    model = UNet(size="debug", **grouped({"levels": 8, **options}, **GROUPS))
    model.build_from(spec)
    return model.train()


def random_rows(spec=SPEC, batch_size=3, length=4) -> Batch:
    """Rows of one episode without an end, of noise."""
    channels, height, width = spec.observation_shape
    flags = torch.zeros(batch_size, length, dtype=torch.bool)
    return Batch(
        action=torch.randint(spec.num_actions, (batch_size, length)),
        reward=torch.randint(-1, 2, (batch_size, length)).float(),
        continuation=torch.ones(batch_size, length),
        is_first=flags,
        is_last=flags.clone(),
        observation=torch.randint(
            0, 256, (batch_size, length, spec.frame_stack * channels, height, width), dtype=torch.uint8
        ),
    )


def learn(model, batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and the gradient of every parameter."""
    model.zero_grad()
    total = model.loss(batch).total
    total.backward()
    return total.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def same(model, a, b) -> bool:
    (loss_a, gradient_a), (loss_b, gradient_b) = learn(model, a), learn(model, b)
    return torch.equal(loss_a, loss_b) and all(map(torch.equal, gradient_a, gradient_b))


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """(40, 7) rows of the dot's world, with ends, truncations and openings."""
    store = play(tmp_path_factory.mktemp("dots") / "store", 140, limit=9)
    env, start = np.meshgrid(np.arange(4), np.arange(0, 130, 13), indexing="ij")
    return store.gather(env.ravel(), start.ravel(), 7, frame_stack=4)


GREY, COLOUR = SPEC, Spec((3, 21, 14), 2, 6)


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("levels", [4, 256])
@pytest.mark.parametrize("frame_loss", ["categorical", "l2"])
@pytest.mark.parametrize("reward_loss", ["categorical", "real"])
def test_every_method_keeps_the_contract(spec, levels, frame_loss, reward_loss):
    model = make(spec, levels=levels, frame_loss=frame_loss, reward_loss=reward_loss)
    batch = random_rows(spec)
    channels, height, width = spec.observation_shape
    stack_shape = (spec.frame_stack * channels, height, width)
    shape = (spec.frame_stack * channels * height * width + 1,)
    assert (model.state_shape, model.feature_shape) == (shape, stack_shape)

    total, parts, states, _ = model.loss(batch)
    assert total.shape == ()
    assert total.isfinite()
    assert not any(part.requires_grad for part in parts.values())
    assert torch.equal(states, model.encode(batch))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    assert torch.equal(WorldModel.encode(model, batch), states), "encode is a scan over observe"
    initial = model.initial(3)
    assert (initial.shape, initial.dtype) == ((3, *shape), torch.uint8)
    state = model.observe(initial, batch.action[:, 0], batch.observation[:, 1], batch.is_first[:, 1])
    assert torch.equal(model.frames(state), batch.observation[:, 1])
    assert torch.equal(state[:, -1], batch.action[:, 0])
    opened = model.observe(initial, batch.action[:, 0], batch.observation[:, 1], torch.ones(3, dtype=torch.bool))
    assert (opened[:, -1] == 0).all(), "no action led to the first frame of an episode"
    after, reward, continuation = model.step(state, batch.action[:, 0])
    assert (after.shape, after.dtype) == ((3, *shape), torch.uint8)
    assert torch.equal(model.frames(after)[:, :-channels], model.frames(state)[:, channels:])
    assert torch.equal(after[:, -1], batch.action[:, 0]), "the action that led here"
    assert (reward.shape, reward.dtype) == ((3,), torch.float32)
    assert (continuation.shape, continuation.dtype) == ((3,), torch.float32)
    assert ((continuation > 0) & (continuation < 1)).all()
    assert reward_loss == "real" or (reward.abs() < 1).all()
    features, frame = model.features(state), model.decode(state)
    assert (features.shape, features.dtype) == ((3, *stack_shape), torch.float32)
    seen = batch.observation[:, 1]
    if frame_loss == "categorical":
        seen = model.palette[nearest_level(model.palette)[seen.long()]]
        assert torch.equal(model.features(after)[:, -channels:], model.decode(after)), "dreamed frames are as painted"
    assert torch.equal(features, seen / 255), "a policy sees real frames in the levels of dreamed ones"
    assert torch.equal(frame, batch.observation[:, 1, -channels:] / 255)
    if frame_loss == "categorical":
        assert torch.isin(model.newest(after), model.palette).all()
    dreamed = imagine(model, None, state, 3, actions=batch.action[:, :3])
    assert dreamed.state.shape == (3, 4, *shape)


def test_one_hot_weights_act_as_the_action_they_stand_for():
    model, batch = make().eval(), random_rows()
    state, action = model.encode(batch)[:, 1], batch.action[:, 1]
    by_index, by_weight = model.step(state, action), model.step(state, F.one_hot(action, 4).float())
    assert all(map(torch.equal, by_index, by_weight))


def test_the_mode_is_taken_at_temperature_0_and_the_softmax_sampled_above():
    model = make(Spec((1, 1, 1), 4, 4), levels=4)
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    number = 20_000
    action = torch.zeros(number, dtype=torch.int64)
    frame = logits[None, :, None, None, None].expand(number, -1, 1, 1, 1)
    state = model.initial(number)
    assert (model.newest(model.append(state, action, model.draw(frame))) == model.palette[2]).all()
    for temperature in (0.5, 1.0, 3.0):
        model.temperature = temperature
        newest = model.newest(model.append(state, action, model.draw(frame))).flatten()
        probability = (logits / temperature).softmax(dim=0)
        frequency = torch.stack([(newest == level).float().mean() for level in model.palette])
        assert ((frequency - probability).abs() < 5 * (probability / number).sqrt()).all()


def test_sampled_pixels_stay_where_their_logits_are():
    model = make(levels=4, temperature=1.0)
    wanted = torch.randint(4, (2, 1, 12, 12))
    frame = 50.0 * F.one_hot(wanted, 4).movedim(-1, 1).float()
    after = model.append(model.initial(2), torch.zeros(2, dtype=torch.int64), model.draw(frame))
    assert torch.equal(model.newest(after), model.palette[wanted])


@pytest.mark.parametrize("frame_loss", ["categorical", "l2"])
def test_easy_pixels_cost_nothing_and_teach_nothing(frame_loss):
    model = make(levels=4, frame_loss=frame_loss, clip=0.1, motion_weight=1.0)
    target = torch.full((1, 1, 1, 2), 255, dtype=torch.uint8)
    # the first pixel is nearly certain, the second is not
    if frame_loss == "categorical":
        frame = torch.zeros(1, 4, 1, 1, 2)
        frame[:, 3, ..., 0] = 5.0
        expected = (np.log(4) - 0.1) / 2
    else:
        frame = torch.tensor([0.9, 0.2])[None, None, None]
        expected = (0.8**2 - 0.1) / 2
    frame.requires_grad_()
    loss = model.frame_losses(frame, target, last=target)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected)
    assert (frame.grad[..., 0] == 0).all()
    assert (frame.grad[..., 1] != 0).all()


@pytest.mark.parametrize("frame_loss", ["categorical", "l2"])
@pytest.mark.parametrize("motion_weight", [1.0, 7.0])
def test_the_frame_loss_is_its_formula(frame_loss, motion_weight):
    model = make(levels=5, frame_loss=frame_loss, clip=0.02, motion_weight=motion_weight)
    generator = np.random.default_rng(0)
    last, target = generator.integers(0, 256, (2, 3, 1, 6, 5)).astype(np.uint8)
    target[:, :, :3] = last[:, :, :3]
    logits = generator.normal(size=(3, 5, 1, 6, 5)).astype(np.float32)
    frame = logits if frame_loss == "categorical" else logits[:, 0]
    palette, expected = model.palette.numpy().astype(int), np.zeros(3)
    for b in range(3):
        for y in range(6):
            for x in range(5):
                old, new = (int(picture[b, 0, y, x]) for picture in (last, target))
                if frame_loss == "categorical":
                    old, new = (int(np.abs(palette - pixel).argmin()) for pixel in (old, new))
                    pixel_logits = logits[b, :, 0, y, x].astype(float)
                    loss = np.log(np.exp(pixel_logits).sum()) - pixel_logits[new]
                else:
                    loss = (float(frame[b, 0, y, x]) - new / 255) ** 2
                weight = motion_weight if old != new else 1.0
                expected[b] += weight * max(loss - 0.02, 0) / 30
    losses = model.frame_losses(*map(torch.from_numpy, (frame, target, last)))
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4)


def closing_frames(batch, terminated: bool) -> torch.Tensor:
    """(B, T): rows whose frame closes an episode that was terminated, or else truncated, in the row before."""
    closes = batch.is_last.clone()
    closes[:, 0] = False
    closes[:, 1:] &= (batch.continuation[:, :-1] == 0) == terminated
    return closes


def repaint(batch, rows) -> Batch:
    observation = batch.observation.clone()
    observation[rows] = 255 - observation[rows]
    return batch.replace(observation=observation)


@pytest.mark.parametrize("unroll", [1, 2, 3])
def test_the_frame_after_a_termination_is_never_a_target(windows, unroll):
    model = make(unroll=unroll)
    terminal, truncated = closing_frames(windows, True), closing_frames(windows, False)
    assert min(int(terminal.sum()), int(truncated.sum())) > 3
    assert same(model, windows, repaint(windows, terminal))
    assert not same(model, windows, repaint(windows, truncated)), "the frame at a truncation was really drawn"


@pytest.mark.parametrize("kind", ["terminated", "truncated", "cut"])
@pytest.mark.parametrize("end", [1, 2, 3])
def test_nothing_after_an_end_or_a_cut_teaches_anything(kind, end):
    model, batch = make(unroll=5), random_rows(length=6)
    b = 1
    if kind == "cut":
        batch.is_first[b, end + 1] = True
    else:
        batch.is_last[b, end] = True
        if kind == "terminated" and end:
            batch.continuation[b, end - 1] = 0
    other = random_rows(length=6)
    scrambled = batch.map(torch.clone)
    scrambled.observation[b, end + 1 :] = other.observation[b, end + 1 :]
    scrambled.action[b, end:] = (batch.action[b, end:] + 1) % 4
    scrambled.reward[b, end:] = 1 - batch.reward[b, end:].abs()
    scrambled.continuation[b, end:] = 0
    scrambled.is_last[b, end + 2 :] = True
    assert same(model, batch, scrambled)
    if end > 1:
        scrambled.reward[b, end - 1] = 1 - batch.reward[b, end - 1].abs()
        assert not same(model, batch, scrambled), "what was earned before it does"


def test_a_batch_without_a_single_step_has_a_finite_loss():
    batch = random_rows(length=3)
    batch.is_last[:, 1] = True
    loss, gradient = learn(make(), batch)
    assert loss == 0
    assert all((g == 0).all() for g in gradient)


@pytest.mark.parametrize("unroll", [1, 2, 3, 5, 9])
def test_the_loss_is_that_of_a_loop_that_feeds_predictions_back(windows, unroll):
    """Rewards and ends count by the weights of their windows, frames all alike."""
    model = make(unroll=unroll, motion_weight=3.0, levels=6)
    weight = torch.rand(40)
    windows = windows.replace(extras={"weight": weight[:, None].expand(windows.shape)})
    horizon = min(unroll, 5)
    sums, counts = {"frame": 0.0, "reward": 0.0, "continuation": 0.0}, {"drawn": 0, "reached": 0}
    nearest = nearest_level(model.palette)
    for window in range(40):
        row = windows[window : window + 1]
        for start in range(1, 7 - horizon, horizon):
            state = model.encode(row)[:, start]
            for t in range(start, start + horizon):
                if row.is_last[0, t] or row.is_first[0, t + 1]:
                    break
                frame, drawn, reward, continuation = model.predict(state, row.action[:, t])
                assert torch.equal(drawn, model.draw(frame))
                goes_on = row.continuation[:, t]
                if goes_on == 1:
                    target, last = (nearest[p.long()] for p in (row.observation[:, t + 1, LAST], model.newest(state)))
                    losses = (F.cross_entropy(frame, target, reduction="none") - model.frame.clip).clamp(min=0)
                    sums["frame"] += (losses * torch.where(target != last, 3.0, 1.0)).mean()
                    counts["drawn"] += 1
                sums["reward"] += weight[window] * F.cross_entropy(reward, row.reward[:, t].sign().long() + 1)
                sums["continuation"] += weight[window] * F.binary_cross_entropy_with_logits(continuation, goes_on)
                counts["reached"] += 1
                state = model.step(state, row.action[:, t]).state
    expected = {
        "frame": sums["frame"] / counts["drawn"],
        "reward": sums["reward"] / counts["reached"],
        "continuation": sums["continuation"] / counts["reached"],
    }
    total, parts, *_ = model.loss(windows)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        total, expected["frame"] + expected["reward"] + expected["continuation"], rtol=1e-4, atol=1e-5
    )
    assert parts["horizon"] == horizon
    assert 40 < counts["drawn"] < counts["reached"]


@pytest.mark.parametrize(
    ("unroll", "steps"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_the_horizon_doubles_from_one_to_the_unroll(unroll, steps):
    model = make(unroll=unroll, unroll_warmup=60)
    seen = []
    for _ in range(70):
        seen.append(model.unroll.horizon(model.updates))
        model.updated()
    assert seen == sorted(seen)
    assert sorted(set(seen)) == steps
    assert seen[60] == unroll
    assert Unroll(unroll).horizon(0) == unroll, "without a warm-up from the start"


def test_the_schedule_goes_on_where_a_checkpoint_stopped():
    model = make(unroll=8, unroll_warmup=60)
    for _ in range(35):
        model.updated()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = make(unroll=8, unroll_warmup=60)
    assert other.unroll.horizon(other.updates) == 1
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.updates, other.unroll.horizon(other.updates)) == (35, model.unroll.horizon(model.updates)) == (35, 4)


def test_scheduled_sampling_feeds_what_was_recorded_at_first_and_predictions_later(windows):
    model, batch = make(unroll=3, scheduled_sampling=10), windows[::4]
    probabilities = []
    for _ in range(20):
        probabilities.append(model.unroll.own_predictions(model.updates))
        model.updated()
    assert probabilities == [min(1.0, update / 10) for update in range(20)]
    own = make(unroll=3).loss(batch).total
    assert torch.equal(model.loss(batch).total, own)
    model.updates = 0
    recorded = model.loss(batch).total
    assert not torch.equal(recorded, own)
    assert torch.equal(model.eval().loss(batch).total, own), "held-out losses do not depend on the schedule"
    repainted = batch.map(torch.clone)
    repainted.observation[:, 2, :-1] = 255 - repainted.observation[:, 2, :-1]
    assert not torch.equal(model.train().loss(repainted).total, recorded), "the recorded stack is an input"
    assert torch.equal(make(unroll=3).loss(repainted).total, own), "it is none where predictions are fed back"


def test_input_noise_paints_the_asked_fraction_of_pixels_only_while_training():
    model = make(input_noise=0.2)
    frames = torch.randint(0, 250, (50, 4, 12, 12), dtype=torch.uint8) // 2 * 2
    frames[..., ::4, ::4] = 251  # the sampled median is no other pixel's colour
    state = model.join(frames, torch.randint(4, (50,)))
    assert torch.equal(model.add_noise(state)[:, -1], state[:, -1])
    noisy = model.frames(model.add_noise(state))
    changed = noisy != frames
    assert (noisy[changed] == 251).all()
    inner = changed.reshape(50, 4, 3, 4, 3, 4)[:, :, :, 1:, :, 1:]
    rate, number = inner.float().mean().item(), 50 * 81
    assert abs(rate - 0.2) < 5 * (0.2 * 0.8 / number) ** 0.5
    assert torch.equal(inner.any(dim=1), inner.all(dim=1)), "a pixel is painted in every frame of the stack"
    assert noisy.dtype == torch.uint8
    assert model.eval().add_noise(state) is state
    assert make().add_noise(state) is state


def test_an_untrained_model_copies_the_last_frame():
    batch = random_rows(batch_size=8)
    model = make(levels=16)
    state, action = model.encode(batch)[:, 1], batch.action[:, 1]
    copied = model.newest(model.step(state, action).state)
    assert torch.equal(copied, model.palette[model.level_of(model.newest(state))])
    without = make(levels=16, copy_bias=None)
    assert not any("stay" in name for name, _ in without.named_parameters())
    guessed = without.newest(without.step(state, action).state)
    assert (guessed == copied).float().mean() < 0.5
    squares = make(frame_loss="l2")
    torch.nn.init.zeros_(squares.decoder.head.weight)
    torch.nn.init.zeros_(squares.decoder.head.bias)
    assert torch.equal(squares.newest(squares.step(state, action).state), squares.newest(state))


def test_the_action_before_matters_and_that_of_the_first_row_is_all_that_counts_of_it():
    model, batch = make(), random_rows()
    repainted = batch.map(torch.clone)
    repainted.observation[:, 0] = 255 - repainted.observation[:, 0]
    repainted.reward[:, 0] = 1 - repainted.reward[:, 0]
    assert same(model, batch, repainted)
    repainted.action[:, 0] = (repainted.action[:, 0] + 1) % 4
    assert not same(model, batch, repainted)


def test_what_paints_and_what_foresees_rewards_are_clipped_apart_and_teach_each_other_nothing():
    model, batch = make(unroll=2), random_rows()
    painting, outcomes = ({id(p) for p in part.parameters()} for part in model.gradient_parts())
    assert painting | outcomes == {id(parameter) for parameter in model.parameters()}
    assert not painting & outcomes
    _, gradient = learn(model, batch)
    batch.reward.neg_()
    batch.continuation.zero_()
    batch.continuation[:, 1:3] = 1
    _, other = learn(model, batch)
    for parameter, a, b in zip(model.parameters(), gradient, other, strict=True):
        assert id(parameter) in outcomes or torch.equal(a, b)


def test_windows_of_two_rows_are_refused():
    with pytest.raises(UserError, match="at least 3 rows"):
        make().loss(random_rows(length=2))


def test_only_a_fresh_models_outcomes_start_at_their_frequencies(windows):
    model = make(levels=4)
    model.updated()
    model.refit(windows)
    assert (model.outcomes.offset == 0).all(), "what was learned is kept"
    model.updates = 0
    model.refit(windows)
    assert model.outcomes.offset[-1] > 0, "most actions end nothing"
    other = make(levels=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.outcomes.offset, model.outcomes.offset), "checkpoints keep it"


def test_refit_puts_the_levels_where_the_pixels_are(windows):
    model = make(levels=4)
    model.refit(windows)
    assert model.palette.tolist() == [40, 90, 140, 230]
    seen = windows.observation
    assert torch.equal(model.palette[model.level_of(seen)], seen)
    other = make(levels=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.palette, model.palette), "checkpoints keep it"
