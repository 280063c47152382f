"""The callback, on CartPole with a model that knows it."""

import csv

import lightning
import numpy as np
import pytest
import torch

from datamodules.control import ControlReplay
from datamodules.settings import Envs, Sampling, Storage
from modules.agent import Agent
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.policies.actor_critic import Reinforce
from modules.policies.linear import LinearController
from modules.rounds import Rounds
from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.dreaming.evolve import Evolve
from pipelines.callbacks.housekeeping.random_state import RandomState
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.dreams.starts import Starts
from pipelines.evaluation.results import read
from tests.fakes import PerfectCartPole

SMALL = {
    "generations": 3,
    "population": 6,
    "dreams": 2,
    "horizon": 40,
    "select_every": 2,
    "starts": Starts(context=1),
    "sigma": 0.5,
}


class Stop(lightning.Callback):
    """Plays the part of SIGTERM after so many generations."""

    def __init__(self, evolve, generations):
        self.evolve, self.generations = evolve, generations
        evaluate_population = evolve.evaluate_population

        def counted(run, *arguments):
            if len(evolve.history) == self.generations - 1:
                run.trainer._signal_connector.received_sigterm = True
            return evaluate_population(run, *arguments)

        evolve.evaluate_population = counted


def agent(model=None, policy=None, **rounds) -> Agent:
    rounds = Rounds(**({"model_updates": 2, "policy_updates": 0} | rounds))
    return Agent(model or PerfectCartPole(), policy or LinearController(), "dream", rounds)


def run(folder, evolve, updates=2, module=None, *callbacks, ckpt_path=None, **data):
    """Train an agent on CartPole-v1 a little."""
    lightning.seed_everything(7, verbose=False)
    module = module or agent()
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=updates,
        limit_train_batches=100,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RandomState(), evolve, *callbacks, Collect(prefill=40)],
    )
    options = {"id": "CartPole-v1", "envs": Envs(2), "storage": Storage(100), "seed": 5} | data
    datamodule = ControlReplay(sampling=Sampling(4, 2), **options)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    finally:
        datamodule.teardown("fit")
    return module, trainer


def rows(folder) -> list[dict[str, float]]:
    with (folder / "evolution.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_who_evolves_in_a_perfect_dream_plays_in_reality(tmp_path):
    """40 real steps of random play, all of the rest dreamed: the pole stands in every episode."""
    evolve = Evolve(generations=12, population=16, dreams=4, horizon=500, sigma=0.5, starts=Starts(context=1))
    run(tmp_path, evolve, 2, None, Evaluate(final_episodes=10))
    (evaluation,) = read(tmp_path)
    assert evaluation.env_steps == 40
    assert evaluation.score == 500
    figures = rows(tmp_path)
    assert [row["generation"] for row in figures] == list(range(1, 13))
    assert figures[-1]["mean"] > figures[0]["mean"] + 100
    assert figures[-1]["selected"] > 300  # many starts are poles that fall already
    assert all(row["best"] >= row["mean"] for row in figures)
    assert (tmp_path / "evolution.png").stat().st_size > 1000


def test_every_round_evolves_on_from_who_acts(tmp_path):
    evolve = Evolve(**SMALL)
    module, _ = run(tmp_path, evolve, 5)
    figures = rows(tmp_path)
    assert [(row["update"], row["generation"]) for row in figures] == [(u, g) for u in (1, 3, 4) for g in (1, 2, 3)]
    assert [not np.isnan(row["selected"]) for row in figures] == 3 * [False, True, True]
    assert np.all(np.diff([row["dreamed_steps"] for row in figures]) > 0)
    assert evolve.dreamed_steps > figures[-1]["dreamed_steps"], "the last election came after"
    assert {row["real_steps"] for row in figures} == {40}
    assert module.policy.weight.any()


def test_the_same_seed_evolves_the_same(tmp_path):
    vectors = [run(tmp_path / name, Evolve(**SMALL), 2)[0].policy.vector for name in ("a", "b")]
    assert torch.equal(*vectors)
    assert vectors[0].any()


@pytest.mark.parametrize("world", ["dream", "real"])
def test_a_run_that_was_cut_goes_on_as_if_nothing_had_happened(tmp_path, world):
    """In the middle of an evolution, from a checkpoint of plain data; also what comes after is the same."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    options = SMALL | {"generations": 5, "world": world}
    first = Evolve(**options)
    straight, _ = run(tmp_path / "straight", first, 2)
    evolve, module = Evolve(**options), agent()
    stop = Stop(evolve, 2)
    saved = tmp_path / "cut.ckpt"

    class Save(lightning.Callback):
        def on_exception(self, trainer, pl_module, exception):
            assert isinstance(exception, SIGTERMException)
            trainer.save_checkpoint(saved)

    with pytest.raises(SIGTERMException):
        run(tmp_path / "cut", evolve, 2, module, stop, Save())
    assert len(evolve.history) == 2
    again = Evolve(**options)
    resumed, _ = run(tmp_path / "cut", again, 2, None, ckpt_path=saved)
    assert len(again.history) == 5
    assert [row["mean"] for row in first.history] == [row["mean"] for row in again.history]
    assert torch.equal(straight.world_model.one, resumed.world_model.one)
    assert torch.equal(straight.policy.vector, resumed.policy.vector)
    assert straight.policy.vector.any()


def test_in_reality_its_steps_count(tmp_path):
    """Evaluations and checkpoints know them; nobody stores them."""
    evolve = Evolve(**SMALL | {"world": "real"})
    _, trainer = run(tmp_path, evolve, 2, None, Evaluate(final_episodes=1))
    data, figures = trainer.datamodule, rows(tmp_path)
    (evaluation,) = read(tmp_path)
    assert evaluation.env_steps == 40 + data.unstored_steps
    assert [row["selected"] for row in figures] == pytest.approx([float("nan")] * 3, nan_ok=True)
    assert data.unstored_steps >= 3 * 6 * 2 * 8, "a pole stands for 8 steps at least"
    assert evolve.dreamed_steps == 0


def test_in_reality_it_stops_at_its_limit(tmp_path):
    evolve = Evolve(**SMALL | {"world": "real", "generations": 50, "limit": 300})
    _, trainer = run(tmp_path, evolve, 2)
    before, after = evolve.history[-1]["real_steps"], 40 + trainer.datamodule.unstored_steps
    assert len(evolve.history) < 10
    assert after >= 300
    assert before <= after


def test_a_first_controller_comes_from_a_checkpoint(tmp_path, monkeypatch):
    kept = agent()
    kept.build_from(run(tmp_path / "a", Evolve(**SMALL), 2)[0].spec)
    kept.policy.adopt(torch.arange(10.0))
    monkeypatch.setattr("pipelines.runs.checkpoints.load", lambda path: (kept, {}))
    evolve = Evolve(**SMALL | {"generations": 1, "sigma": 1e-9, "start": tmp_path})
    module, _ = run(tmp_path / "b", evolve, 2)
    torch.testing.assert_close(module.policy.vector, torch.arange(10.0))
    other = LinearController()
    other.build((4,), 6)
    kept.policy = other
    with pytest.raises(UserError, match=r"has 6 actions .* this world has 2 actions"):
        run(tmp_path / "c", Evolve(**SMALL | {"start": tmp_path}), 2)


def test_a_population_larger_than_memory_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a population of 1000000000 .* GiB are free: at most \d+ fit") as raised:
        run(tmp_path, Evolve(**SMALL | {"population": 10**9}), 2)
    fits = int(str(raised.value).split("at most ")[1].split(" ")[0])
    assert 1000 < fits < 10**9
    assert not list(tmp_path.glob("evolution*"))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (agent(policy=Reinforce(hidden=[4])), "LinearController: got Reinforce"),
        (PerfectCartPole(), "LinearController: got PerfectCartPole"),
    ],
    ids=["policy", "model"],
)
def test_somebody_else_s_policy_is_refused(tmp_path, module, words):
    with pytest.raises(UserError, match=words):
        run(tmp_path, Evolve(**SMALL), 2, module)


def test_a_model_that_cannot_dream_is_refused(tmp_path):
    module = Agent(IdentityModel(), LinearController(), "real", Rounds(model_updates=2, policy_updates=0))
    with pytest.raises(UserError, match="IdentityModel has no step and no reward"):
        run(tmp_path, Evolve(**SMALL), 2, module)


def test_evolution_in_reality_needs_worlds_of_its_own(tmp_path):
    run(tmp_path, Evolve(**SMALL), 2)
    with pytest.raises(UserError, match=r"leave out data\.path"):
        run(tmp_path / "b", Evolve(**SMALL | {"world": "real"}), 2, path=tmp_path / "replay" / "rank0")


@pytest.mark.parametrize(
    "options",
    [{"generations": 0}, {"population": 3}, {"sigma": 0.0}, {"horizon": 0}],
    ids=str,
)
def test_impossible_numbers(options):
    with pytest.raises(UserError, match="evolve needs") as raised:
        Evolve(**options)
    assert "\n" not in str(raised.value)
