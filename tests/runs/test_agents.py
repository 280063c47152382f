"""Agents through the real command: CartPole-v1 in a few updates."""

import csv
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml

from datamodules.replay.store import ReplayStore
from modules.states.mlp_ensemble import MLPEnsemble
from pipelines.console import CONFIGS
from pipelines.evaluation.results import read
from pipelines.runs import checkpoints

PROJECT = Path(__file__).resolve().parents[2]
LAST = Path("checkpoints") / "last.ckpt"
ENSEMBLE = {"num_members": 2, "num_elites": 2, "hidden_size": 16, "num_layers": 1}
MBPO = {
    "agent.rounds": {"model_updates": [4, 2], "policy_updates": 3, "together": False},
    "Evaluate.final_episodes": 2,
    "Evaluate.episodes": 1,
    "Evaluate.every": 15,
    "Collect.prefill": 30,
    "Collect.steps_per_round": 10,
    "Refit.num_windows": 16,
    "Mbpo.horizon": {"start": 4, "end": 4},
    "Mbpo.num_dreams": 6,
    "data.sampling.batch_size": 8,
    **{f"model.{name}": value for name, value in ENSEMBLE.items()},
}
RANDOM = {"class_path": "pipelines.acting.play.RandomPlay"}
DQN = {"Evaluate.final_episodes": 2, "Collect.prefill": 30, "data.sampling.batch_size": 8}
SMALL = DQN | {"policy.network.hidden": [8]}
PPO = DQN | {
    "policy.hidden": [8],
    "Collect.prefill": 104,
    "agent.rounds": {"model_updates": 0, "policy_updates": 4},
    "Collect.steps_per_round": 20,
}


class Rewardless(MLPEnsemble):
    """Predicts no reward."""

    capabilities = frozenset({"step"})


class Featureless(MLPEnsemble):
    """Shows nothing to a policy."""

    def build(self, spec) -> None:
        super().build(spec)
        del self.feature_shape


class Short(MLPEnsemble):
    """Dreams few steps."""

    max_horizon = 3


class KeepWeights(lightning.Callback):
    """Writes the weights of every process."""

    def on_train_end(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir)
        torch.save(pl_module.state_dict(), folder / f"weights{trainer.global_rank}.pt")


@pytest.fixture
def small(tmp_path):
    """Write an experiment with some arguments changed: of the agent, its model, policy or data, or of a callback."""

    def small(name, changes) -> Path:
        content = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
        agent, callbacks = content["model"]["init_args"], content["trainer"]["callbacks+"]
        places = {callback["class_path"].rpartition(".")[2]: callback["init_args"] for callback in callbacks}
        places |= {"agent": agent, "data": content["data"]["init_args"]}
        for key, value in changes.items():
            place, _, argument = key.partition(".")
            if argument == "class_path":
                agent["world_model"] = {"class_path": value}
            elif value is None and not argument:
                callbacks[:] = [c for c in callbacks if not c["class_path"].endswith(f".{place}")]
            else:
                part = {"model": "world_model", "policy": "policy"}.get(place)
                where = agent[part].setdefault("init_args", {}) if part else places[place]
                *groups, argument = argument.split(".")
                for group in groups:
                    where = where.setdefault(group, {})
                where[argument] = value
        content["trainer"] = {"accelerator": "cpu", "log_every_n_steps": 1, "logger": [], "callbacks+": callbacks}
        content["trainer"]["logger"] = [{"class_path": "pipelines.runs.loggers.CSVLogger"}]
        path = tmp_path / f"{name}_small.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return small


@pytest.fixture
def train(run, small, tmp_path):
    """Run a small experiment in the folder `run`."""

    def train(name, changes, updates, *arguments, folder="run"):
        path = small(name, changes)
        options = ("--trainer.default_root_dir", tmp_path / folder, "--trainer.max_steps", updates)
        return run("fit", "--config", path, *options, "--trainer.limit_train_batches", 100, *arguments)

    return train


def metrics(folder: Path, *names: str) -> list[tuple[float, ...]]:
    """The rows of metrics.csv that have all of these columns."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [tuple(float(row[name]) for name in names) for row in rows if all(row[name] for name in names)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoints.read(path)["state_dict"].items() if isinstance(v, torch.Tensor)}


def same(first: Path, second: Path) -> bool:
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys()
    return all(torch.equal(before[name], after[name]) for name in before)


def callback(path: Path, name: str) -> dict:
    (state,) = (state for key, state in checkpoints.read(path)["callbacks"].items() if key.startswith(name))
    return state


def policy_updates(path: Path) -> int:
    return checkpoints.read(path)["state_dict"]["policy._extra_state"]["updates"]


# Algorithms.


def test_mbpo(train, tmp_path):
    """Rounds of 4 + 3, then 2 + 3 updates, with 10 real steps before each but the first."""
    outcome, folder = train("ensemble__mbpo", MBPO, 17), tmp_path / "run"
    assert outcome.code == 0, outcome.err
    assert "mean return" in outcome.out
    turns = ["model"] * 4 + ["policy"] * 3 + 2 * (["model"] * 2 + ["policy"] * 3)
    logged = metrics(folder, "step", "model_updates", "policy_updates", "dreamed_steps", "dream/horizon")
    logged = [row for row in logged if turns[int(row[0])] == "policy"]
    made = [(turns[: n + 1].count("model"), turns[: n + 1].count("policy")) for n in range(17)]
    expected = [(n, *made[n], 24 * made[n][1], 4) for n in range(17) if turns[n] == "policy"]
    assert logged == expected
    steps = dict(metrics(folder, "step", "env_steps"))
    assert [steps[n] for n in (0, 5, 6, 10, 11, 15, 16)] == [30, 30, 40, 40, 50, 50, 50]
    effective = [value for (value,) in metrics(folder, "dream/effective_horizon")]
    assert all(1 <= value <= 4 for value in effective)
    assert [(e.updates, e.env_steps) for e in read(folder)] == [(7, 30), (17, 50), (17, 50)]
    assert len(metrics(folder, "evaluate/return")) == 3
    assert len(set(metrics(folder, "train/nll"))) == 8
    assert len(set(metrics(folder, "policy/loss"))) == 9
    assert policy_updates(folder / LAST) == 9


def test_mixed_precision(train, tmp_path):
    outcome = train("ensemble__mbpo", MBPO, 9, "--trainer.precision", "bf16-mixed")
    assert outcome.code == 0, outcome.err
    after = weights(tmp_path / "run" / LAST)
    floats = [value for value in after.values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in floats)


def test_a_model_free_agent_plays_as_it_learns(train, tmp_path):
    outcome, folder = train("dqn_cartpole", SMALL | {"Collect.steps_per_update": 2.0}, 5), tmp_path / "run"
    assert outcome.code == 0, outcome.err
    assert dict(metrics(folder, "step", "env_steps")) == {n: 30 + 2 * min(n + 1, 4) for n in range(5)}
    epsilon = [value for (value,) in metrics(folder, "policy/epsilon")]
    assert np.diff(epsilon) == pytest.approx(np.full(4, -0.95 * 2 / 500), rel=1e-3), "not by the real steps"
    assert "no gradient clipping" not in outcome.err


def test_ppo_learns_from_what_it_left_in_the_store(train, tmp_path):
    """A policy that never changes would leave the same columns; 4 environments of 26 rows, then 5 more a round."""
    outcome, folder = train("ppo_cartpole", PPO | {"policy.optimization.lr": 0.0}, 9), tmp_path / "run"
    assert outcome.code == 0, outcome.err
    store = ReplayStore.open(folder / "replay" / "rank0")
    assert store.rows == 26 + 5 + 5
    batch = store.gather(np.arange(4), np.zeros(4, int), store.rows)
    module, _ = checkpoints.load(folder / LAST)
    with torch.no_grad():
        logits, value = module.policy(batch.observation.flatten(0, 1))
    log_prob = logits.log_softmax(1).gather(1, batch.action.flatten()[:, None])[:, 0]
    assert torch.allclose(batch.extras["log_prob"].flatten(), log_prob, atol=1e-5)
    assert torch.allclose(batch.extras["value"].flatten(), value, atol=1e-5)
    assert value.std() > 0.01
    assert metrics(folder, "policy/clipped") == [(0,)] * 9


def test_its_own_prefill_is_a_must_where_columns_are_a_policys(train, tmp_path):
    outcome = train("ppo_cartpole", PPO | {"Collect.prefill_actor": RANDOM}, 1)
    assert outcome.refused("log_prob, value", "set prefill_actor of Collect to null")
    assert not list(tmp_path.rglob("*.ckpt"))


# Resuming.


def test_an_agent_that_was_killed_goes_on_as_if_nothing_had_happened(train, run, tmp_path):
    """From a checkpoint in the middle of a run: the same weights, target network, schedule and draws."""
    assert train("dqn_cartpole", SMALL | {"Collect.steps_per_update": 0.0}, 1, folder="played").code == 0
    changes = SMALL | {"data.path": str(tmp_path / "played" / "replay" / "rank0"), "policy.epsilon.steps": 9}
    keep = (
        *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k", -1),
        *("--trainer.callbacks.every_n_train_steps", 3, "--trainer.callbacks.filename", "kept-{step}"),
    )
    assert train("dqn_cartpole", changes, 7, *keep, folder="straight").code == 0
    (kept,) = (tmp_path / "straight").rglob("kept-step=3.ckpt")
    assert policy_updates(kept) == 3
    outcome = train("dqn_cartpole", changes, 7, *keep, "--ckpt_path", kept, folder="resumed")
    assert outcome.code == 0, outcome.err
    assert same(tmp_path / "straight" / LAST, tmp_path / "resumed" / LAST)
    assert policy_updates(tmp_path / "resumed" / LAST) == 7
    assert not same(kept, tmp_path / "resumed" / LAST)


def test_a_run_that_plays_itself_goes_on_counting(train, tmp_path):
    folder = tmp_path / "run"
    assert train("ensemble__mbpo", MBPO, 9).code == 0
    before = callback(folder / LAST, "Mbpo")
    assert before["counts"] == {"dreamed_steps": 72, "model_updates": 6, "policy_updates": 3}
    assert train("ensemble__mbpo", MBPO, 17, "--ckpt_path", "last").code == 0
    after = callback(folder / LAST, "Mbpo")
    assert after["counts"] == {"dreamed_steps": 216, "model_updates": 8, "policy_updates": 9}
    assert before["generators"] != after["generators"]
    assert callback(folder / LAST, "Evaluate")["evaluated_at"] == 50
    assert policy_updates(folder / LAST) == 9
    assert metrics(folder, "env_steps")[-1] == (50,)


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.class_path": "modules.identity.IdentityModel"}, ["IdentityModel has no step and no reward"]),
        ({"model.class_path": f"{__name__}.Rewardless"}, ["Rewardless has no reward"]),
        ({"model.class_path": f"{__name__}.Featureless"}, ["Featureless has no features"]),
        ({"model.class_path": f"{__name__}.Short"}, ["Short dreams 3 steps at most", "horizon of 4"]),
        ({"Mbpo.horizon": {"start": 0, "end": 4}}, ["horizon", "at least 1 step"]),
        ({"agent.rounds": {"model_updates": 0, "policy_updates": 0}}, ["round 0 needs at least one update"]),
        ({"agent.rounds": {"model_updates": [3, -1], "policy_updates": 1}}, ["round 1 needs at least one update"]),
        ({"agent.rounds": {"model_updates": []}}, ["empty list"]),
        ({"agent.rounds": {"model_update": 3}}, ["unknown key rounds.model_update", "rounds.model_updates"]),
        ({"agent.policy_learns_from": "both"}, ["set model.policy_learns_from to dream, not both"]),
        ({"agent.policy_learns_from": "real"}, ["policy_learns_from of dream or both"]),
        ({"agent.policy_learns_from": "dreams"}, ["policy_learns_from", "dreams"]),
        ({"Mbpo": None}, ["policy_learns_from is dream, but no callback launches dreams"]),
        ({"policy.activation": "rellu"}, ["activation", "rellu"]),
        ({"policy.discount": 1.01}, ["discount must be from 0 to 1"]),
        ({"Mbpo.minibatches": 7}, ["minibatches from 1 to num_dreams"]),
        ({"Mbpo.starts.recent": 1}, ["recent must be more than the 1 rows of context"]),
    ],
    ids=str,
)
def test_a_wrong_argument(train, tmp_path, changes, words):
    outcome = train("ensemble__mbpo", MBPO | changes, 6)
    assert outcome.refused(*words)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_ppo_on_rows_that_it_did_not_play(train):
    outcome = train("ppo_cartpole", PPO | {"data.storage.extras": [], "Collect.prefill_actor": RANDOM}, 2)
    assert outcome.refused("PPO", "data.storage.extras", "log_prob, value")


# Many processes.


@pytest.mark.slow
def test_two_processes_train_together(small, tmp_path):
    """Each plays and dreams by itself; both keep the same weights, though a part stands still at every update."""
    folder = tmp_path / "run"
    arguments = [
        *("--config", str(small("ensemble__mbpo", MBPO)), "--trainer.default_root_dir", str(folder)),
        *(
            "--trainer.devices",
            "2",
            "--trainer.strategy",
            "ddp_find_unused_parameters_true",
            "--trainer.max_steps",
            "17",
        ),
        *("--trainer.limit_train_batches", "100", f"--trainer.callbacks+={__name__}.KeepWeights"),
    ]
    subprocess.run([sys.executable, "-m", "pipelines.cli", "fit", *arguments], cwd=PROJECT, check=True, timeout=300)
    first, second = (torch.load(folder / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first if isinstance(first[name], torch.Tensor))
    assert first["policy._extra_state"] == second["policy._extra_state"] == {"updates": 9, "real_steps": 40}
    stores = [ReplayStore.open(folder / "replay" / f"rank{rank}") for rank in (0, 1)]
    played = [store.gather(np.array([0]), np.array([0]), store.rows).observation for store in stores]
    assert played[0].shape == played[1].shape
    assert not torch.equal(played[0], played[1]), "both ranks play the same game"
    generators = callback(folder / LAST, "Mbpo")["generators"]
    assert len(generators) == 2
    assert generators[0] != generators[1]
    assert len(read(folder)) == 4, "rank 0 alone evaluates, by the steps of both"
