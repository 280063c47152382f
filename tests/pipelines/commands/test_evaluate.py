"""`dreamcade evaluate`, and agents that start with a trained world model."""

import av
import numpy as np
import pytest
import torch

from datamodules.environments.emulator import AtariEmulators
from pipelines import cli
from pipelines.console import CONFIGS
from pipelines.evaluation import results
from pipelines.runs import checkpoint_files, checkpoints

CARTPOLE = ["--config", "configs/experiment/ensemble__mbpo.yaml", "--config", "configs/debug.yaml"]
SHORT = ["--model.rounds.model_updates", "2", "--model.rounds.policy_updates", "2", "--trainer.max_steps", "4"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """The checkpoint of a short MBPO run on CartPole."""
    folder = tmp_path_factory.mktemp("runs") / "agent"
    cli.main(["fit", *CARTPOLE, *SHORT, "--trainer.default_root_dir", str(folder)])
    return folder / "checkpoints" / "last.ckpt"


def test_it_plays_whole_episodes_and_keeps_every_return(run, agent, tmp_path):
    outcome = run("evaluate", agent, "--episodes", 5, "--seed", 3, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    (evaluation,) = results.read(tmp_path / "out")
    assert evaluation.game == "CartPole-v1"
    assert evaluation.final
    assert evaluation.updates == 4
    assert evaluation.env_steps == checkpoints.read(agent)["env_steps"]
    assert len({episode["seed"] for episode in evaluation.episodes}) == 5
    for episode in evaluation.episodes:
        assert episode["finished"]
        assert episode["return"] == episode["length"]
    assert f"{evaluation.score:.1f}" in outcome.out


def test_the_same_seed_plays_the_same_episodes(run, agent, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--episodes", 4, "--greedy", "false", "--seed", seed, "--out", tmp_path / name)
        assert run("evaluate", agent, *options).code == 0
    a, b, c = (results.read(tmp_path / name)[0].episodes for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("options", "played"),
    [
        ([], "greedy"),
        (["--actor.exploration.epsilon", "0.2"], "greedy, epsilon 0.2"),
        (["--actor", "PolicyPlay", "--greedy", "false"], "sampled"),
        (["--actor", "RandomPlay", "--actor.exploration.persistence", "2"], "random, held n steps by n^-2"),
    ],
    ids=" ".join,
)
def test_any_actor_plays(run, agent, tmp_path, options, played):
    outcome = run("evaluate", agent, "--episodes", 1, "--max_steps", 3, "--out", tmp_path / "out", *options)
    assert outcome.code == 0, outcome.err
    assert results.read(tmp_path / "out")[0].policy == played


def test_the_actor_of_the_run_s_evaluations_plays_unless_changed(run, agent, tmp_path):
    """What a checkpoint's configuration names, and a change of one setting on the command line or in a file."""
    kept = checkpoints.read(agent)
    (evaluate,) = (c for c in kept["config"]["trainer"]["callbacks"] if c["class_path"].endswith(".Evaluate"))
    search = {"class_path": "pipelines.search.search.Search", "init_args": {"stop": {"simulations": 7}}}
    init_args = {"search": search, "exploration": {"epsilon": 0.25}}
    evaluate["init_args"]["actor"] = {"class_path": "pipelines.acting.play.SearchPlay", "init_args": init_args}
    changed = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint_files.write(kept, changed)
    (tmp_path / "actor.yaml").write_text("actor: {init_args: {search: {init_args: {stop: {simulations: 2}}}}}")
    for number, (options, simulations) in enumerate(
        [([], 7), (["--actor.search.stop.simulations", 3], 3), (["--config", tmp_path / "actor.yaml"], 2)]
    ):
        out = tmp_path / str(number)
        outcome = run("evaluate", changed, "--episodes", 1, "--max_steps", 2, "--out", out, *options)
        assert outcome.code == 0, outcome.err
        assert results.read(out)[0].policy == f"search by Puct, {simulations} simulations, epsilon 0.25"


def test_an_actor_that_does_not_fit_is_one_line(run, agent, trained, tmp_path):
    search = ("--actor.search", "pipelines.search.search.Search")
    assert run("evaluate", agent, "--actor", "RulesPlay", *search).refused("CartPole-v1 cannot be cloned")
    pong = trained / "checkpoints" / "last.ckpt"
    assert run("evaluate", pong, "--actor", "SearchPlay", *search).refused("a policy is needed", "UNet has none")
    assert run("evaluate", agent, "--actor", "PolicyPlai").refused("PolicyPlai", "pipelines.acting.play.PolicyPlay")
    assert run("evaluate", agent, "--actor.exploration.epsilom", 1).refused("epsilom", "epsilon")


def test_a_model_without_a_policy_is_planned_past(run, trained, tmp_path):
    """In the emulator, which needs nothing that was learned."""
    plan = ("--actor", "RulesPlay", "--actor.search", "pipelines.search.search.Search", "--actor.rollout_depth", 2)
    options = ("--actor.search.stop.simulations", 2, "--episodes", 1, "--max_steps", 2, "--out", tmp_path)
    outcome = run("evaluate", trained / "checkpoints" / "last.ckpt", *plan, *options)
    assert outcome.code == 0, outcome.err
    assert results.read(tmp_path)[0].policy == "search by Puct, 2 simulations, rollouts of 2 decisions"


def test_the_run_s_own_record_grows_unless_told_otherwise(run, agent):
    before = len(results.read(agent.parent.parent))
    assert run("evaluate", agent, "--episodes", 1).code == 0
    assert len(results.read(agent.parent.parent)) == before + 1


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_the_first_episode_is_filmed_as_it_was_played(run, trained, tmp_path, suffix):
    """In colour and unscaled, one picture per move; a film changes no score."""
    last = trained / "checkpoints" / "last.ckpt"
    film, seeds = tmp_path / "films" / f"pong.{suffix}", ("--episodes", 2, "--max_steps", 6, "--actor", "RandomPlay")
    assert run("evaluate", last, *seeds, "--out", tmp_path / "plain").code == 0
    outcome = run("evaluate", last, *seeds, "--out", tmp_path / "filmed", "--film", film)
    assert outcome.code == 0, outcome.err
    plain, filmed = (results.read(tmp_path / name)[0].episodes for name in ("plain", "filmed"))
    assert plain == filmed
    with av.open(str(film)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [picture.shape for picture in pictures] == [(210, 160, 3)] * 6
    assert any((picture[..., 0] != picture[..., 1]).any() for picture in pictures), "grey"
    emulators = AtariEmulators("Pong", 2, seed=0, variant="evaluation")
    emulators.reset()
    assert np.abs(emulators.screens()[0].astype(int) - pictures[0]).mean() < 10


def test_what_cannot_be_filmed_is_one_line(run, agent, tmp_path):
    for film, words in (("film.gif", "CartPole-v1 has no screen"), ("film.avi", "must end with .gif or .mp4")):
        outcome = run("evaluate", agent, "--episodes", 1, "--film", tmp_path / film, "--out", tmp_path)
        assert outcome.code == 2
        assert words in outcome.err
        assert outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(run, agent, trained, tmp_path):
    assert run("evaluate", agent, "--game", "Pong").refused("CartPole-v1", "not of pong")
    assert run("evaluate", trained / "checkpoints" / "last.ckpt").refused("has none")
    assert run("evaluate", tmp_path / "none.ckpt").refused("no checkpoint")
    assert run("evaluate", agent, "--episodes", 0).refused("--episodes", "at least 1")
    assert run("evaluate", agent, "--policy", "sampled").refused("--policy", "--greedy false")


PRETRAINED = [
    "--trainer.callbacks+=pipelines.callbacks.learning.pretrained.Pretrained",
    "--trainer.callbacks.checkpoint",
]


def test_a_policy_can_learn_in_a_model_that_was_trained_before(run, agent, tmp_path):
    frozen = ["--model.rounds.model_updates", "0", "--model.rounds.policy_updates", "2", "--trainer.max_steps", "2"]
    config = tmp_path / "no_refit.yaml"
    text = (CONFIGS / "experiment" / "ensemble__mbpo.yaml").read_text()
    start = text.index("    - class_path: pipelines.callbacks.learning.refit.Refit")
    config.write_text(text[:start] + text[text.index("    - class_path: pipelines.callbacks.dreaming.mbpo.Mbpo") :])
    folder = tmp_path / "run"
    arguments = ["fit", "--config", config, "--config", "configs/debug.yaml", *frozen, *PRETRAINED, agent]
    outcome = run(*arguments, "--trainer.default_root_dir", folder, "--seed_everything", 5)
    assert outcome.code == 0, outcome.err
    before, after = (checkpoints.read(path)["state_dict"] for path in (agent, folder / "checkpoints" / "last.ckpt"))
    model = [name for name, value in before.items() if "world_model" in name and isinstance(value, torch.Tensor)]
    assert model
    assert all(torch.equal(before[name], after[name]) for name in model)
    assert not torch.equal(before["policy.actor_head.weight"], after["policy.actor_head.weight"])


def test_a_model_of_another_world_or_size_is_refused(run, agent, trained, tmp_path):
    arguments = ["fit", *CARTPOLE, *SHORT, "--trainer.default_root_dir"]
    pong = trained / "checkpoints" / "last.ckpt"
    assert run(*arguments, tmp_path / "a", *PRETRAINED, pong).refused("is of pong, not of CartPole-v1")
    assert run(*arguments, tmp_path / "c", *PRETRAINED, agent).refused("Pretrained without Refit")
    larger = ["--model.world_model.hidden_size", "32"]
    assert run(*arguments, tmp_path / "b", *larger, *PRETRAINED, agent).refused("do not fit MLPEnsemble")
