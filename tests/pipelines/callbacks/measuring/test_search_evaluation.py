"""What a search adds to a policy that walks the wrong way, in a world model that knows DotWorld."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from modules.agent import Agent
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.learner import Loss
from modules.optimization import Optimization
from modules.policies.actor_critic import Reinforce
from modules.policies.policy import Policy
from pipelines.acting.play import SearchPlay
from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.callbacks.measuring.search_evaluation import Findings, SearchEvaluation, divergence
from pipelines.callbacks.run import Run
from pipelines.evaluation.episodes import Move
from pipelines.evaluation.report import runs
from pipelines.evaluation.results import read
from pipelines.search.rules import Gumbel, Puct, Stop
from pipelines.search.search import Search
from tests.datamodules.test_replay_data import DotReplay
from tests.fakes import SIZE, DotWorld, PerfectModel, locate
from tests.pipelines.search.worlds import TableWorld


class Lefty(Policy):
    """Walks left, to its ruin; its value knows how far the other wall is, and expects half a point too little."""

    def build(self, feature_shape, num_actions) -> None:
        self.left = torch.nn.Parameter(torch.tensor([0.0, 0.5, 0.0, 0.0]))

    def forward(self, features):
        x, _ = locate((features[:, -1:] * 255).round().byte())
        return self.left.expand(len(x), 4), 0.8 ** (SIZE - 2 - x) - 0.5

    def loss(self, batch, model):
        return Loss(self.left.sum(), {})


class Known(PerfectModel):
    def loss(self, batch):
        return Loss((self.one - 1) ** 2, {})


class Lanes(DotWorld):
    """Says all that an evaluation wants to know."""

    def __init__(self, num_envs, seed) -> None:
        super().__init__(num_envs, limit=99, seed=seed)
        self.seeds = seed + np.arange(num_envs)
        self.description = {"environment": "fake", "game": "dot", "protocol": {"name": "plain"}}


class Data(DotReplay):
    def evaluation_environment(self, num_envs, seed):
        return Lanes(num_envs, seed)


class Kept(DummyLogger):
    """Keeps what is logged, with its step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, metrics))


SEARCH = Search(Gumbel(c_scale=1.0), Stop(simulations=16), discount=0.8)


@pytest.fixture
def fit(tmp_path):
    """Train an agent that learns nothing for some updates."""

    def fit(*callbacks, updates=1, model=None) -> list[tuple[int, dict]]:
        logger = Kept()
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            max_steps=updates,
            accelerator="cpu",
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, Collect(prefill=30, steps_per_update=3.0)],
        )
        data = Data(frame_stack=4)
        trainer.fit(Agent(model or Known(), Lefty(Optimization(0.0)), "real"), datamodule=data)
        return [(step, metrics) for step, metrics in logger.rows if "search/return" in metrics]

    return fit


def test_planning_beats_the_policy_that_it_plans_with(fit, tmp_path, capsys):
    ((step, found),) = fit(SearchEvaluation(SEARCH, final_episodes=6))
    assert step == 1
    assert found["search/raw_return"] == -1
    assert found["search/return"] == 1
    assert found["search/return_gain"] == 2
    assert found["search/simulations"] == 16
    assert found["search/changed_moves"] == 1
    assert 1 < found["search/depth"] < 16
    assert 0 < found["search/entropy"] < np.log(4)
    assert found["search/value_gain"] > 0
    assert found["search/simulations_per_second"] > 16
    raw, planned = read(tmp_path)
    assert [raw.policy, planned.policy] == ["greedy", "search by Gumbel, 16 simulations"]
    assert [e["seed"] for e in raw.episodes] == [e["seed"] for e in planned.episodes]
    assert len(planned.episodes) == 6
    printed = capsys.readouterr().out
    assert "-1.0 | 1.0" in printed
    for name in ("search_tree.png", "search_line.png"):
        assert name in printed
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_score_of_the_run_is_that_of_planning(fit, tmp_path):
    fit(SearchEvaluation(SEARCH, final_episodes=2))
    (run,) = runs.load([tmp_path])
    assert run.last.policy.startswith("search")
    assert run.last.score == 1


def test_it_evaluates_every_so_many_steps_and_more_simulations_are_counted(fit, tmp_path):
    search = Search(Puct(), Stop(simulations=5), discount=0.97)
    logged = fit(SearchEvaluation(search, every=6, episodes=1, final_episodes=2), updates=6)
    assert [e.env_steps for e in read(tmp_path)][::2] == [30, 36, 42, 45]
    assert all(found["search/simulations"] == 5 for _, found in logged)
    assert [len(e.episodes) for e in read(tmp_path)] == [1] * 6 + [2] * 2


def test_moves_count_while_their_episode_goes_on():
    world, roots = TableWorld(), torch.tensor([1, 4, 7])
    found = Search(Puct(), Stop(simulations=20), discount=0.9).run(roots, world, world.evaluate)
    findings, playing = Findings(), np.array([True, False, True])
    findings.add(Move(SimpleNamespace(found=found), playing, 0.5, None))
    figures = findings.figures()
    assert figures["simulations_per_second"] == 3 * 20 / 0.5
    assert figures["value_gain"] == pytest.approx((found.value - found.network_value)[playing].mean())
    assert figures["depth"] == pytest.approx(found.depth[playing].mean())
    change = divergence(found.policy, found.prior)
    assert figures["divergence"] == pytest.approx(change[playing].mean())
    assert findings.root == (0 if change[0] > change[2] else 2)
    again = found.policy.copy()
    assert np.abs(divergence(again, again)).max() < 1e-6
    findings.add(Move(SimpleNamespace(found=found), np.array([False, True, False]), 0.25, None))
    assert findings.figures()["depth"] == pytest.approx(found.depth.mean())


def test_other_ranks_stand_by():
    SearchEvaluation(SEARCH).evaluate(Run(SimpleNamespace(is_global_zero=False)), 3)


def test_what_cannot_plan_is_refused_before_training():
    agent = Agent(IdentityModel(), Reinforce(hidden=[4]), "real")
    for callback in (SearchEvaluation(SEARCH), Evaluate(actor=SearchPlay(SEARCH))):
        with pytest.raises(UserError, match="IdentityModel has no step and no reward"):
            callback.on_fit_start(SimpleNamespace(lightning_module=agent, datamodule=None), agent)
    with pytest.raises(UserError, match="PerfectModel has none"):
        SearchEvaluation(SEARCH).on_fit_start(SimpleNamespace(lightning_module=PerfectModel(), datamodule=None), None)
