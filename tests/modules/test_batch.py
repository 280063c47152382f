import dataclasses

import numpy as np
import pytest
import torch

from modules.batch import Batch, push, stack


def rows(seed=0, batch_size=5, length=13) -> Batch:
    """Random rows with ends (an opening after them) and cuts (an opening without an end)."""
    generator = np.random.default_rng(seed)
    is_last = generator.random((batch_size, length)) < 0.15
    is_first = generator.random((batch_size, length)) < 0.1
    is_first[:, 1:] |= is_last[:, :-1]
    return Batch(
        action=torch.from_numpy(generator.integers(1, 7, (batch_size, length))),
        reward=torch.from_numpy(generator.normal(size=(batch_size, length)).astype(np.float32)),
        continuation=torch.ones(batch_size, length),
        is_first=torch.from_numpy(is_first),
        is_last=torch.from_numpy(is_last),
        observation=torch.from_numpy(generator.integers(0, 256, (batch_size, length, 4, 3, 2)).astype(np.uint8)),
        extras={"value": torch.from_numpy(generator.normal(size=(batch_size, length, 2)))},
    )


@pytest.mark.parametrize("seed", range(3))
def test_previous_action_is_the_row_before_unless_an_episode_opens(seed):
    batch = rows(seed)
    previous = batch.previous_action()
    assert previous.dtype == torch.int64
    for b in range(batch.shape[0]):
        for t in range(batch.shape[1]):
            expected = 0 if t == 0 or batch.is_first[b, t] else int(batch.action[b, t - 1])
            assert int(previous[b, t]) == expected


@pytest.mark.parametrize("seed", range(3))
def test_follows_is_false_exactly_at_ends_and_cuts(seed):
    batch = rows(seed)
    has_successor = batch.has_successor()
    assert has_successor.shape == (5, 12)
    for b in range(5):
        for t in range(12):
            ends, cut = bool(batch.is_last[b, t]), bool(batch.is_first[b, t + 1])
            assert bool(has_successor[b, t]) == (not ends and not cut)
    cuts = batch.is_first[:, 1:] & ~batch.is_last[:, :-1]
    ends = batch.is_last[:, :-1]
    assert min(int(cuts.sum()), int(ends.sum()), int(has_successor.sum())) > 2, "the case lacks something"


@pytest.mark.parametrize("num_frames", [1, 2, 4, 9])
@pytest.mark.parametrize("seed", range(2))
def test_a_stack_repeats_the_frame_that_opened_the_episode(num_frames, seed):
    generator = np.random.default_rng(seed)
    frames = torch.from_numpy(generator.integers(0, 256, (3, 11, 2, 4, 3)).astype(np.uint8))
    is_first = torch.from_numpy(generator.random((3, 11)) < 0.25)
    stacked = stack(frames, is_first, num_frames)
    assert stacked.shape == (3, 11, 2 * num_frames, 4, 3)
    assert stacked.dtype == torch.uint8
    assert is_first[:, 1:].any()
    for b in range(3):
        episode_start = 0
        for t in range(11):
            episode_start = t if is_first[b, t] else episode_start
            expected = [frames[b, max(t - back, episode_start)] for back in reversed(range(num_frames))]
            assert torch.equal(stacked[b, t], torch.cat(expected))


@pytest.mark.parametrize("length", [2, 3, 4, 5, 13])
def test_segments_share_the_rows_between_them_and_drop_the_rest(length):
    batch = rows()
    segments = batch.segments(length)
    starts = [s for s in range(0, 13, length - 1) if s + length <= 13]
    assert segments.shape == (5 * len(starts), length)
    for b in range(5):
        for i, start in enumerate(starts):
            window, segment = batch[b, start : start + length], segments[b * len(starts) + i]
            assert torch.equal(segment.observation, window.observation)
            assert torch.equal(segment.action, window.action)
            assert torch.equal(segment.is_first, window.is_first)
            assert torch.equal(segment.extras["value"], window.extras["value"])


def test_map_to_and_index_reach_every_tensor_and_leave_the_absent_absent():
    batch = rows()
    part = batch[1:3, 4:]
    for field in dataclasses.fields(Batch):
        whole, chunk = getattr(batch, field.name), getattr(part, field.name)
        if field.name == "extras":
            assert torch.equal(chunk["value"], whole["value"][1:3, 4:])
        elif whole is None:
            assert chunk is None
            assert field.name == "state"
        else:
            assert torch.equal(chunk, whole[1:3, 4:])
    meta = batch.to("meta")
    tensors = [meta.action, meta.reward, meta.continuation, meta.is_first, meta.is_last, meta.observation]
    assert {tensor.device.type for tensor in [*tensors, meta.extras["value"]]} == {"meta"}
    assert meta.state is None
    doubled = batch.map(lambda tensor: torch.cat([tensor, tensor]))
    assert doubled.shape == (10, 13)
    assert doubled.extras["value"].shape == (10, 13, 2)
    assert batch.action.device.type == "cpu"


def test_replace_leaves_the_original_alone():
    batch = rows()
    changed = batch.replace(reward=batch.reward + 1)
    assert torch.equal(changed.reward, batch.reward + 1)
    assert changed.action is batch.action
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.reward = changed.reward


@pytest.mark.parametrize("shape", [(4, 3, 2), (5,)], ids=["pictures", "vectors"])
def test_pushing_row_after_row_is_stacking(shape):
    batch = rows()
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (*batch.shape, *shape)).astype(np.uint8))
    for num_frames in (1, 3):
        stacked, pushed = None, []
        for t in range(batch.shape[1]):
            stacked = push(stacked, frames[:, t], batch.is_first[:, t], num_frames)
            pushed.append(stacked)
        wide = frames.view(*batch.shape, shape[0], *shape[1:], *[1] * (3 - len(shape)))
        expected = stack(wide, batch.is_first, num_frames).view(*batch.shape, -1, *shape[1:])
        assert torch.equal(torch.stack(pushed, dim=1), expected)


def test_pushing_within_an_episode_drops_the_oldest():
    stacked, newest = torch.arange(6).view(1, 6), torch.tensor([[6, 7]])
    assert push(stacked, newest, None, 3).tolist() == [[2, 3, 4, 5, 6, 7]]
