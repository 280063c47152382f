import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
)

from modules.world_model import Step
from pipelines.dreams.foresight import Foreseen, auc, average_precision, calibration_error, compare, foresee, judge
from tests.fakes import PerfectModel, play

ONCE = slice(None)


def outcomes(reward, dreamed, terminated=None, ending=None, reached=None) -> Foreseen:
    """Outcomes of one window."""
    reward = torch.tensor([reward], dtype=torch.float32)
    nothing = torch.zeros_like(reward)
    return Foreseen(
        reached=nothing == 0 if reached is None else torch.tensor([reached]),
        reward=reward,
        dreamed_reward=torch.tensor([dreamed]),
        terminated=nothing > 0 if terminated is None else torch.tensor([terminated]),
        dreamed_termination=nothing if ending is None else torch.tensor([ending]),
    )


@pytest.mark.parametrize("ties", [False, True])
def test_the_measures_agree_with_torchmetrics_and_with_their_definition(ties):
    generator = np.random.default_rng(0)
    scores = torch.from_numpy(generator.integers(0, 5 if ties else 10**6, 300) / (5 if ties else 10**6)).float()
    came = torch.from_numpy(generator.random(300)) < 0.1 + 0.3 * scores
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[came].tolist() for b in scores[~came].tolist()]
    assert auc(scores, came) == pytest.approx(np.mean(pairs))
    assert auc(scores, came) == pytest.approx(float(binary_auroc(scores, came.long())), abs=1e-6)
    expected = float(binary_average_precision(scores, came.long()))
    assert average_precision(scores, came) == pytest.approx(expected, abs=1e-6)
    expected = float(binary_calibration_error(scores, came.long(), n_bins=15))
    assert calibration_error(scores, came) == pytest.approx(expected, abs=1e-6)


def test_chance_scores_one_half_and_the_base_rate():
    came = torch.arange(1000) % 20 == 0
    measures = compare(torch.full((1000,), 0.05), came)
    assert measures == pytest.approx(
        {"base": 0.05, "auc": 0.5, "ap": 0.05, "p_event": 0.05, "p_other": 0.05, "ece": 0}, abs=1e-6
    )


def test_large_scores_are_ranked_to_the_last_digit():
    came = torch.tensor([False, False, True])
    assert auc(torch.tensor([400.0, 401.0, 402.0]), came) == 1
    assert auc(torch.tensor([402.0, 401.0, 400.0]), came) == 0


def test_without_events_there_is_nothing_to_measure():
    measures = judge(outcomes([0, 0], [0.1, 0.2]), ONCE)
    assert (measures["rewards"], measures["terminations"], measures["reward_real_sum"]) == (0, 0, 0)
    assert measures["reward_sum"] == pytest.approx(0.3)
    assert math.isnan(measures["reward_auc"])
    assert math.isnan(measures["termination_ece"])


def test_rewards_are_foreseen_by_their_sign():
    """Each sign that came asks every step; a foreseen reward of the other sign is none."""
    right = judge(outcomes([1, -1, 0, 0], [0.9, -0.8, 0.0, 0.1]), ONCE)
    assert right["rewards"] == 2
    assert right["reward_base"] == 2 / 8
    assert right["reward_auc"] == right["reward_ap"] == 1
    assert right["reward_p_event"] == pytest.approx(0.85)
    assert right["reward_p_other"] == pytest.approx(0.1 / 6)
    assert (right["reward_sum"], right["reward_real_sum"]) == (pytest.approx(0.2), 0)
    wrong = judge(outcomes([1, -1, 0, 0], [-0.9, 0.8, 0.0, 0.1]), ONCE)
    assert wrong["reward_auc"] < 0.1
    assert wrong["reward_p_event"] == 0
    positive = judge(outcomes([1, 0], [0.6, -0.5]), ONCE)
    assert positive["reward_base"] == 1 / 2, "no question about a sign that never came"


def test_expectations_of_raw_rewards_are_no_probabilities():
    measures = judge(outcomes([100, 0, 0], [30.0, 20.0, 0.0]), ONCE)
    assert measures["reward_auc"] == measures["reward_ap"] == 1
    assert (measures["reward_sum"], measures["reward_real_sum"]) == (50, 100)
    assert all(math.isnan(measures[f"reward_{name}"]) for name in ("p_event", "p_other", "ece"))


def test_steps_that_were_not_reached_do_not_count():
    measures = judge(
        outcomes([0, 1, 1], [0.0, 1.0, 0.0], [False, True, True], [0.1, 0.9, 0.0], [True, True, False]), ONCE
    )
    assert (measures["rewards"], measures["terminations"]) == (1, 1)
    assert measures["reward_auc"] == measures["termination_auc"] == 1
    only_first = judge(outcomes([0, 1, 1], [0.5, 1.0, 0.0]), slice(1))
    assert (only_first["rewards"], only_first["reward_sum"]) == (0, 0.5)


class Signs(PerfectModel):
    """Knows half of every reward's sign, and steps that end an episode for sure."""

    def predicted_reward(self, reward):
        return reward.sign()

    def step(self, state, action):
        after, reward, continuation = super().step(state, action)
        return Step(after, 0.5 * reward.sign(), continuation)


@pytest.mark.parametrize("context", [1, 3])
def test_a_model_is_asked_about_the_actions_that_were_taken(tmp_path, context):
    store = play(tmp_path / "store", 200, num_envs=3, num_validation_envs=0)
    env, start = np.meshgrid(np.arange(3), np.arange(0, 180, 5), indexing="ij")
    windows = store.gather(env.ravel(), start.ravel(), context + 4, frame_stack=4)
    found = foresee(Signs(), windows, context)
    assert found.reward.shape == (108, 4)
    assert torch.equal(found.reward, windows.reward[:, context - 1 : -1].sign())
    assert torch.equal(found.terminated, windows.continuation[:, context - 1 : -1] == 0)
    measures = judge(found, ONCE)
    assert measures["rewards"] > 5
    assert measures["reward_auc"] == measures["termination_auc"] == 1
    assert measures["reward_p_event"] == 0.5
    assert measures["reward_sum"] == 0.5 * measures["reward_real_sum"]
