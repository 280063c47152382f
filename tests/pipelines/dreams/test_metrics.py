import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from modules.world_model import Step
from pipelines.dreams.foresight import Foreseen, judge
from pipelines.dreams.metrics import COLUMNS, Dreams, dream, per_horizon, side_by_side, strip
from tests.fakes import PerfectModel, play

T = 16


class CopyModel(PerfectModel):
    """Nothing ever happens."""

    def step(self, state, action):
        ones = torch.ones(len(state))
        return Step(torch.cat([state[:, 1:], state[:, -1:]], dim=1), 0 * ones, ones)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """(36, T + 1) real rows with walls, truncations and openings."""
    store = play(tmp_path_factory.mktemp("dots") / "store", 200, num_envs=3, num_validation_envs=0)
    env, start = np.meshgrid(np.arange(3), np.arange(0, 180, 15), indexing="ij")
    return store.gather(env.ravel(), start.ravel(), T + 1, frame_stack=4)


def made_up(seed=0, batch_size=7, horizon=4, shape=(1, 13, 12)) -> Dreams:
    """A wrong dream, every number of which is drawn."""
    generator = np.random.default_rng(seed)

    def frames(*leading):
        picture = generator.random((*leading, *shape)).astype(np.float32)
        return torch.from_numpy(picture)

    def flags(chance):
        return torch.from_numpy(generator.random((batch_size, horizon)) < chance)

    first, real, dreamed = frames(batch_size), frames(batch_size, horizon), frames(batch_size, horizon)
    still, imagined_still = (torch.from_numpy(generator.random(real.shape) < 0.6) for _ in range(2))
    reached = flags(0.8).cumprod(dim=1).bool()
    signs = torch.from_numpy(generator.integers(-1, 2, (batch_size, horizon))).float()
    answers = torch.from_numpy(generator.random((2, batch_size, horizon)))
    return Dreams(
        first=first,
        real=torch.where(still, first[:, None] + 0.01, real),
        dreamed=torch.where(imagined_still, first[:, None] - 0.01, dreamed),
        valid=reached & flags(0.9),
        outcomes=Foreseen(reached, signs, 2 * answers[0] - 1, flags(0.4), answers[1]),
    )


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 by its formula, with pictures that are mirrored beyond their edges."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2

    def smooth(x):
        x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(x, (11, 11), axis=(-2, -1))
        return (views * weight).sum(axis=(-2, -1))

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(similarity.mean())


@pytest.mark.parametrize("context", [1, 3])
def test_a_perfect_model_makes_no_mistake_at_any_horizon(windows, context):
    rows = per_horizon(dream(PerfectModel(), windows, context))
    assert [row["horizon"] for row in rows] == list(range(1, T + 2 - context))
    for row in rows:
        assert row["windows"] >= 4
        assert row["changed"] == row["either"] == 0
        assert row["copy_changed"] > 0.1
        assert row["psnr"] == pytest.approx(100)  # the squared error is cut off at 1e-10
        assert row["ssim"] == pytest.approx(1, abs=1e-4)
        assert row["psnr"] > row["copy_psnr"]
        assert row["ssim"] > row["copy_ssim"]
    assert rows[-1]["rewards"] == rows[-1]["terminations"] > 5
    for row in rows[5:]:
        for name in ("reward", "termination"):
            assert row[f"{name}_auc"] == row[f"{name}_ap"] == row[f"{name}_p_event"] == 1
            assert row[f"{name}_p_other"] == row[f"{name}_ece"] == 0
        assert row["reward_sum"] == row["reward_real_sum"] != 0


def test_copying_scores_as_copying_and_predicts_no_reward_and_no_end(windows):
    rows = per_horizon(dream(CopyModel(), windows))
    for row in rows:
        for name in ("psnr", "ssim", "changed", "either"):
            assert row[name] == row[f"copy_{name}"], name
        assert row["reward_sum"] == 0
    for name in ("reward", "termination"):
        assert rows[-1][f"{name}_auc"] == 0.5
        assert rows[-1][f"{name}_ap"] == pytest.approx(rows[-1][f"{name}_base"])
        assert rows[-1][f"{name}_ece"] == pytest.approx(rows[-1][f"{name}_base"])


def test_a_window_counts_up_to_its_first_end_or_cut(windows):
    cut = windows.is_first.clone()
    cut[::5, 4] = True
    windows = windows.replace(is_first=cut)
    dreams = dream(PerfectModel(), windows)
    for b in range(windows.shape[0]):
        alive = True
        for t in range(T):
            alive = alive and not windows.is_last[b, t] and not windows.is_first[b, t + 1]
            ended = bool(windows.continuation[b, t] == 0)
            assert bool(dreams.outcomes.reached[b, t]) == alive
            assert bool(dreams.valid[b, t]) == (alive and not ended), "a closing frame of a terminated episode"
            assert bool(dreams.outcomes.terminated[b, t]) == ended
    assert torch.equal(dreams.first, windows.observation[:, 0, -1:] / 255)
    assert torch.equal(dreams.real, windows.observation[:, 1:, -1:] / 255)


def test_what_comes_after_an_end_changes_no_number():
    dreams = made_up()
    dead = ~dreams.outcomes.reached
    assert dead.sum() > 5
    noise = made_up(seed=9)
    pairs = {name: (value, getattr(noise.outcomes, name)) for name, value in vars(dreams.outcomes).items()}
    outcomes = {name: torch.where(dead, other, value) for name, (value, other) in pairs.items()}
    scrambled = Dreams(
        first=dreams.first,
        real=torch.where(dreams.valid[..., None, None, None], dreams.real, noise.real),
        dreamed=torch.where(dreams.valid[..., None, None, None], dreams.dreamed, noise.dreamed),
        valid=dreams.valid,
        outcomes=Foreseen(**outcomes | {"reached": dreams.outcomes.reached}),
    )
    assert per_horizon(scrambled) == per_horizon(dreams)


@pytest.mark.parametrize(("seed", "shape"), [(0, (1, 13, 12)), (1, (3, 12, 15))])
def test_every_number_is_its_formula(seed, shape):
    dreams = made_up(seed, shape=shape)
    rows = per_horizon(dreams)
    array = {name: value.numpy() for name, value in vars(dreams).items() if name != "outcomes"}
    for t, row in enumerate(rows):
        assert set(COLUMNS) <= row.keys()
        valid = array["valid"][:, t]
        first, real, dreamed = array["first"][valid], array["real"][valid, t], array["dreamed"][valid, t]
        assert (row["horizon"], row["windows"]) == (t + 1, valid.sum())
        moved = np.abs(real - first) > 5 / 255
        either = moved | (np.abs(dreamed - first) > 5 / 255)
        assert 0 < moved.sum() < either.sum() < either.size
        for prefix, guess in (("", dreamed), ("copy_", first)):
            error = (guess.astype(np.float64) - real) ** 2
            assert row[f"{prefix}psnr"] == pytest.approx(10 * np.log10(1 / error.mean()), rel=1e-4)
            assert row[f"{prefix}changed"] == pytest.approx(error[moved].mean(), rel=1e-4)
            assert row[f"{prefix}either"] == pytest.approx(error[either].mean(), rel=1e-4)
            assert row[f"{prefix}ssim"] == pytest.approx(ssim(guess, real), abs=2e-4)
        judged = judge(dreams.outcomes, slice(t + 1))
        assert all(row[name] == value or math.isnan(value) for name, value in judged.items()), "all steps up to it"


def test_a_horizon_that_no_window_reaches_is_empty_and_not_an_error():
    dreams = made_up()
    outcomes = replace(dreams.outcomes, reached=dreams.outcomes.reached & False)
    empty = replace(dreams, valid=dreams.valid & False, outcomes=outcomes)
    for row in per_horizon(empty):
        assert (row["windows"], row["rewards"], row["terminations"]) == (0, 0, 0)
        for name in ("psnr", "ssim", "changed", "copy_either", "reward_auc", "termination_ece"):
            assert math.isnan(row[name])


@pytest.mark.parametrize("channels", [1, 3])
def test_films_show_real_dreamed_and_error_side_by_side(channels):
    dreams = made_up(shape=(channels, 13, 12))
    films = side_by_side(dreams)
    assert films.shape == (7, 5, 3, 13, 3 * 12 + 2 * 2)
    real, dreamed, error = films[..., :12], films[..., 14:26], films[..., 28:]
    assert torch.equal(real[:, 0], dreams.first.expand(-1, 3, -1, -1))
    assert torch.equal(dreamed[:, 0], real[:, 0])
    assert (error[:, 0] == 0).all()
    assert (films[..., 12:14] == 0.5).all()
    assert (films[..., 26:28] == 0.5).all()
    for b in range(7):
        for t in range(4):
            shown = dreams.real[b, t] if dreams.valid[b, t] else torch.zeros(channels, 13, 12)
            assert torch.equal(real[b, t + 1], shown.expand(3, -1, -1))
            assert torch.equal(dreamed[b, t + 1], dreams.dreamed[b, t].expand(3, -1, -1))
            assert torch.equal(error[b, t + 1], (shown - dreams.dreamed[b, t]).abs().expand(3, -1, -1))
    assert not dreams.valid.all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strip_shows_the_chosen_horizons_of_one_window(channels):
    dreams = made_up(shape=(channels, 13, 12))
    picture = strip(dreams, 2, [1, 4])
    assert picture.shape == (3, 3 * 13, 2 * 12)
    for column, step in enumerate([0, 3]):
        real, dreamed = dreams.real[2, step], dreams.dreamed[2, step]
        for row, expected in enumerate([real, dreamed, (real - dreamed).abs()]):
            part = picture[:, row * 13 : (row + 1) * 13, column * 12 : (column + 1) * 12]
            assert torch.equal(part, expected.expand(3, -1, -1))
