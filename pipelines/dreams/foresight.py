"""How well a world model foresees rewards and ends, compared with what really came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.batch import Batch
from modules.imagination import evaluating, imagine
from modules.world_model import WorldModel

BINS = 15
"""Bins of the expected calibration error."""

MEASURES = ("base", "auc", "ap", "p_event", "p_other", "ece")
FORESIGHT_COLUMNS = (
    "rewards", *(f"reward_{name}" for name in MEASURES), "reward_sum", "reward_real_sum",
    "terminations", *(f"termination_{name}" for name in MEASURES),
)  # fmt: skip


@dataclass(frozen=True)
class Foreseen:
    """Rewards and ends that were dreamed, beside those that came; the actions are those that were really taken."""

    reached: Tensor
    """(B, T) bool: True if the action was really taken, with no end and no cut before it."""
    reward: Tensor
    """(B, T): real rewards, as the model predicts them: raw, clipped, or signs."""
    dreamed_reward: Tensor
    """(B, T): expected rewards."""
    terminated: Tensor
    """(B, T) bool: True if the action really terminated the episode."""
    dreamed_termination: Tensor
    """(B, T): probability that the action terminates the episode."""

    @classmethod
    def concatenate(cls, parts: Sequence[Foreseen]) -> Foreseen:
        """Return the outcomes of several sets of windows together."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def foreseen(model: WorldModel, real: Batch, dreamed: Batch) -> Foreseen:
    """Put a dream (B, T) beside the real rows (B, T) whose first row it starts from and whose actions it takes."""
    return Foreseen(
        reached=real.has_successor().cumprod(dim=1).bool(),
        reward=model.predicted_reward(real.reward[:, :-1]),
        dreamed_reward=dreamed.reward[:, :-1].float(),
        terminated=real.continuation[:, :-1] == 0,
        dreamed_termination=1 - dreamed.continuation[:, :-1].float(),
    )


@torch.no_grad()
def foresee(model: WorldModel, batch: Batch, context: int = 1) -> Foreseen:
    """Dream on from the first `context` rows of every window; the model need not decode.

    Args:
        model: world model with the capabilities step and reward.
        batch: windows (B, context + T).
        context: number of rows that the model observes before it dreams, at least 1.
    """
    with evaluating(model):
        states = model.encode(batch[:, :context])[:, -1]
    rest = batch[:, context - 1 :]
    return foreseen(model, rest, imagine(model, None, states, rest.shape[1] - 1, actions=rest.action[:, :-1]))


def judge(outcomes: Foreseen, steps: slice) -> dict[str, float]:
    """Measure how well the rewards and ends of some steps were foreseen.

    A reward is foreseen by its sign: for every sign that really came, each step asks whether a reward of this sign
    comes, and the expected reward in this direction is the answer. What is called probability below is this answer,
    within [0, 1]; it is nan for rewards beyond -1, 0 and 1, whose expectation is no probability.

    Args:
        outcomes: what was dreamed and what came.
        steps: steps that are judged together.

    Returns:
        For "reward" and "termination": the number of events ("rewards", "terminations"), their frequency ("base"), the
        area under the ROC curve ("auc") and the average precision ("ap") of the probabilities, their means at events
        ("p_event") and elsewhere ("p_other"), the expected calibration error ("ece"); and the sums of dreamed and real
        rewards. Without events all but counts and sums is nan.
    """
    reached = outcomes.reached[:, steps]
    reward, dreamed = outcomes.reward[:, steps][reached], outcomes.dreamed_reward[:, steps][reached]
    signs = [sign for sign in (1, -1) if (reward.sign() == sign).any()]
    came = torch.cat([reward.sign() == sign for sign in signs] or [reward > 0])
    answers = torch.cat([sign * dreamed for sign in signs] or [dreamed])
    ended, ending = outcomes.terminated[:, steps][reached], outcomes.dreamed_termination[:, steps][reached]
    are_signs = bool(torch.isin(reward, reward.new_tensor([-1, 0, 1])).all())
    return {
        "rewards": int(came.sum()),
        **{f"reward_{name}": value for name, value in compare(answers, came, are_signs).items()},
        "reward_sum": float(dreamed.double().sum()),
        "reward_real_sum": float(reward.double().sum()),
        "terminations": int(ended.sum()),
        **{f"termination_{name}": value for name, value in compare(ending, ended).items()},
    }


def compare(scores: Tensor, came: Tensor, probabilities: bool = True) -> dict[str, float]:
    """Compare scores (N,) with the events (N,) bool that they announced, by the MEASURES; nan without events."""
    measures = dict.fromkeys(MEASURES, math.nan)
    if not came.any():
        return measures
    measures |= {"base": float(came.float().mean()), "auc": auc(scores, came), "ap": average_precision(scores, came)}
    if probabilities:
        probability = scores.clamp(0, 1)
        measures["p_event"] = float(probability[came].mean())
        measures["p_other"] = float(probability[~came].mean())
        measures["ece"] = calibration_error(probability, came)
    return measures


def auc(scores: Tensor, came: Tensor) -> float:
    """Return the probability that an event has a higher score (N,) than another row; a tie counts one half.

    This is the area under the ROC curve, by the Mann-Whitney statistic (Hanley and McNeil 1982). Nan if either kind of
    row is missing.
    """
    events, others = scores[came].double(), scores[~came].double().sort().values
    if len(events) == 0 or len(others) == 0:
        return math.nan
    below, up_to = (torch.searchsorted(others, events, right=right).double() for right in (False, True))
    return float((below + up_to).mean() / (2 * len(others)))


def average_precision(scores: Tensor, came: Tensor) -> float:
    """Return the mean precision over the events, each at its own score; that of chance is the events' frequency."""
    ascending, events = scores.double().sort().values, scores[came].double().sort().values
    alarms = len(ascending) - torch.searchsorted(ascending, events)
    hits = len(events) - torch.searchsorted(events, events)
    return float((hits / alarms).mean())


def calibration_error(probability: Tensor, came: Tensor) -> float:
    """Return the expected calibration error (Guo et al. 2017, equation 3): the mean distance, over rows, of the mean
    probability of a bin from the frequency of events in it. The bins split [0, 1] evenly.
    """
    bins = (probability * BINS).long().clamp(max=BINS - 1)
    surplus = torch.zeros(BINS, dtype=torch.float64, device=bins.device)
    surplus.scatter_add_(0, bins, probability.double() - came.double())
    return float(surplus.abs().sum() / len(bins))
