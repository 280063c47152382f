"""Targets against an episode-by-episode computation, one number at a time."""

import pytest
import torch

from modules.batch import Batch
from modules.latents.muzero_targets import make_targets

DISCOUNT = 0.9


def random_rows(windows: int, length: int) -> Batch:
    """Rows with ends, truncations and cuts: environments of play, as stores hold them."""
    shape = windows, length
    is_first, is_last = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    continuation = torch.ones(shape)
    for env in range(windows):
        opens = torch.rand(()) < 0.3
        t = 0
        while t < length:
            is_first[env, t] = opens
            kind, end = int(torch.randint(3, ())), t + int(torch.randint(1, 9, ()))
            if kind == 0 and 0 < end < length:  # termination: the row before the last one did it
                continuation[env, end - 1] = 0
            if kind < 2 and end < length:
                is_last[env, end] = True
            opens, t = torch.tensor(True), end + 1  # kind 2: the run was cut
    return Batch(torch.randint(3, shape), torch.randn(shape), continuation, is_first, is_last)


def reference(batch: Batch, values, env: int, unroll: int, n_step: int):
    """Walk along an environment, as the paper's pseudocode does along a game."""
    reward, continuation = batch.reward[env].tolist(), batch.continuation[env].tolist()
    has_successor, last = batch.has_successor()[env].tolist(), batch.is_last[env].tolist()

    def n_step_return(k: int) -> float:
        total, factor = 0.0, 1.0
        for t in range(k, k + n_step):
            if t >= len(has_successor) or not has_successor[t]:
                return total + factor * values[env, t].item()
            total += factor * reward[t]
            factor *= DISCOUNT
            if continuation[t] == 0:
                return total
        return total + factor * values[env, k + n_step].item()

    states, rewards = [], []
    status = "alive" if not last[0] else "unknown"
    for k in range(unroll + 1):
        states.append((status, n_step_return(k) if status == "alive" else 0.0))
        if k == unroll:
            break
        if status == "alive":
            if not has_successor[k] and continuation[k] == 1:
                status = "unknown"
            else:
                rewards.append(reward[k])
                if continuation[k] == 0:
                    status = "ended"
                continue
        elif status == "ended":
            rewards.append(0.0)
            continue
        rewards.append(None)
    return states, rewards


@pytest.mark.parametrize("own_n", [False, True])
def test_targets_are_those_of_a_walk_along_the_rows(own_n):
    torch.manual_seed(0)
    unroll, n = 4, 3
    batch = random_rows(800, unroll + n + 1)
    values = torch.randn(batch.shape)
    steps = torch.randint(1, n + 1, (800,)) if own_n else n
    targets = make_targets(batch, batch.reward, values, unroll, steps, DISCOUNT)
    seen = set()
    for env in range(800):
        states, rewards = reference(batch, values, env, unroll, int(steps[env]) if own_n else n)
        for k, (status, value) in enumerate(states):
            seen.add(status)
            assert targets.value_known[env, k] == (status != "unknown"), (env, k)
            assert targets.alive[env, k] == (status == "alive"), (env, k)
            if status != "unknown":
                assert targets.value[env, k].item() == pytest.approx(value, abs=1e-5)
        for k, reward in enumerate(rewards):
            assert targets.reward_known[env, k] == (reward is not None)
            if reward is not None:
                assert targets.reward[env, k].item() == pytest.approx(reward)
    assert seen == {"alive", "ended", "unknown"}


def test_a_value_prefix_is_a_sum_that_starts_anew():
    torch.manual_seed(0)
    batch = random_rows(50, 9)
    single = make_targets(batch, batch.reward, batch.reward, 5, 2, DISCOUNT)
    sums = make_targets(batch, batch.reward, batch.reward, 5, 2, DISCOUNT, value_prefix=3)
    assert torch.allclose(sums.reward[:, :3], single.reward[:, :3].cumsum(1))
    assert torch.allclose(sums.reward[:, 3:], single.reward[:, 3:].cumsum(1))
    assert torch.equal(sums.reward_known, single.reward_known)
