"""`dreamcade search`: one move of MuZero on CartPole, and of a UNet with a policy on real Boxing."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import cli
from pipelines.acting.actors import PolicyActor
from pipelines.acting.play import Play, Stage
from pipelines.commands.search import DEFAULT, walk
from pipelines.runs import checkpoints
from tests.fakes import locate
from tests.pipelines.callbacks.measuring.test_search_evaluation import Known, Lanes, Lefty


def fit(folder, experiment, *options) -> str:
    cli.main(
        [
            *("fit", "--config", experiment, "--config", "configs/debug.yaml"),
            *("--trainer.default_root_dir", str(folder), "--trainer.max_steps", "1", *options),
        ]
    )
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def muzero(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs") / "muzero", "muzero__cartpole")


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A UNet with a Q-network that was evaluated with and without planning."""
    folder = tmp_path_factory.mktemp("runs") / "unet"
    small = ("--data.size", "[42, 42]", "--data.storage.capacity", "64")
    return fit(folder, "unet__search_small", *small)


def rows(out: str) -> dict[str, list[str]]:
    """The table's cells by action."""
    lines = out.partition("──")[2].splitlines()[1:]
    cells = [line.split() for line in lines if re.match(r"^ \w+ +\d\.\d{3} ", line)]
    return {row[0]: row[1:] for row in cells}


def test_a_move_of_muzero(run, muzero, tmp_path):
    outcome = run("search", muzero, "--actor.search.stop.simulations", 30, "--steps", 3, "--folder", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    table = rows(outcome.out)
    assert set(table) == {"LEFT", "RIGHT"}
    assert sum(float(row[0]) for row in table.values()) == pytest.approx(1, abs=2e-3)
    assert sum(int(row[1]) for row in table.values()) == 30
    assert sum(float(row[3]) for row in table.values()) == pytest.approx(1, abs=2e-3)
    assert sum(row[-1] == "played" for row in table.values()) == 1
    assert "search by Puct, 30 simulations" in outcome.out
    for name in ("tree.png", "line.png"):
        assert str(tmp_path / "out" / name) in outcome.out
        assert np.asarray(Image.open(tmp_path / "out" / name).convert("L")).std() > 5


def test_the_same_seed_is_the_same_move(run, muzero, tmp_path):
    tables = [rows(run("search", muzero, "--seed", 1, "--folder", tmp_path).out) for _ in range(2)]
    assert tables[0] == tables[1]
    assert sum(int(row[1]) for row in tables[0].values()) == 4, "as the configuration says"
    module, kept = checkpoints.load(muzero)
    states = []
    for seed in (1, 1, 2):
        environment = checkpoints.world(muzero, kept).evaluation_environment(1, seed)
        actor = PolicyActor(module, module.policy, np.random.default_rng(0), greedy=True)
        walk(environment, actor, 4)
        states.append(actor.state)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("steps", range(14))
def test_positions_are_never_over(steps):
    """A walk to the left from field x takes x steps; the position after that opens the next episode."""
    environment, model, policy = Lanes(1, seed=3), Known(), Lefty()
    model.build_from(model.spec._replace(frame_stack=1))
    policy.build(model.feature_shape, 4)
    first = int(locate(torch.from_numpy(environment.reset()))[0])
    actor = PolicyActor(model, policy, np.random.default_rng(0), greedy=True)
    game = walk(environment, actor, steps)
    at = int(locate(actor.state)[0])
    assert at == int(locate(torch.from_numpy(game.observation))[0])
    assert at >= 1
    if steps < first:
        assert at == first - steps


def test_a_move_of_a_frame_model_is_drawn_with_its_frames(run, unet):
    outcome = run("search", unet, "--steps", 2)
    assert outcome.code == 0, outcome.err
    assert len(rows(outcome.out)) == 18
    assert "boxing after 2 steps, search by Gumbel, 4 simulations" in outcome.out
    for name in ("tree.png", "line.png", "search_tree.png", "search_line.png"):
        assert (unet.parent.parent / name).exists()
    # Boxing's ring is of one grey, which covers most of every frame.
    picture = np.asarray(Image.open(unet.parent.parent / "line.png").convert("RGB")).reshape(-1, 3)
    colors, counts = np.unique(picture, axis=0, return_counts=True)
    ground = colors[np.argsort(counts)[-2]]
    assert ground[0] == ground[1] == ground[2] < 200


def test_a_run_without_a_search_is_searched_by_puct(run, muzero, tmp_path):
    """As one whose callbacks name none: the discount is the policy's or the model's."""
    module, kept = checkpoints.load(muzero)
    for callback in kept["config"]["trainer"]["callbacks"]:
        for name in ("search", "actor"):
            callback.get("init_args", {}).pop(name, None)
    assert checkpoints.actor(muzero, kept, searches=True) is None
    assert checkpoints.actor(muzero, kept) == {"class_path": "pipelines.acting.play.PolicyPlay"}
    actor = checkpoints.instantiate(Play, DEFAULT, muzero).actor(
        Stage(None, lambda purpose: np.random.default_rng(0), module.world_model, module.policy)
    )
    assert str(actor.search) == "search by Puct, 50 simulations"
    assert actor.search.discount == module.discount == 0.997


def test_the_emulator_is_searched_too(run, unet, tmp_path):
    """From where the checkpoint's policy has come to, with the true frames."""
    uct = tmp_path / "uct.yaml"
    uct.write_text(
        "actor:\n  class_path: RulesPlay\n  init_args:\n    rollout_depth: 3\n    search:\n"
        "      class_path: pipelines.search.search.Search\n      init_args:\n        discount: 0.99\n"
        "        rule: {class_path: pipelines.search.rules.Uct}\n        stop: {simulations: 20}\n"
    )
    outcome = run("search", unet, "--config", uct, "--steps", 2, "--folder", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "boxing after 2 steps, search by Uct, 20 simulations, rollouts of 3 decisions" in outcome.out
    assert sum(int(row[1]) for row in rows(outcome.out).values()) == 20
    picture = np.asarray(Image.open(tmp_path / "line.png").convert("RGB"))
    assert picture.reshape(-1, 3).std() > 5


def test_mistakes_are_one_line(run, muzero, trained, tmp_path):
    assert run("search", tmp_path / "none.ckpt").refused("no checkpoint")
    assert run("search", muzero, "--actor.search.stop.simulations", 0).refused("at least 1 simulation: got 0")
    assert run("search", muzero, "--steps", -1).refused("--steps", "at least 0")
    assert run("search", muzero, "--game", "pong").refused("CartPole-v1", "not of pong")
    assert run("search", trained / "checkpoints" / "last.ckpt").refused("UNet has none")
    assert run("search", muzero, "--stepz", 3).refused("stepz", "--steps")
    assert run("search", muzero, "--simulations", 3).refused("--simulations", "--actor.search.stop.simulations")
    assert run("search", muzero, "--actor", "PolicyPlay").refused("PolicyPlay does not search", "RulesPlay")
    rules = ("--actor", "RulesPlay", "--actor.search", "pipelines.search.search.Search")
    assert run("search", muzero, *rules).refused("CartPole-v1 cannot be cloned")
    dqn = fit(tmp_path / "dqn", "dqn_cartpole")
    assert run("search", dqn).refused("predicts states and rewards", "IdentityModel has no step")
    assert not list(tmp_path.rglob("tree.png"))


def test_it_is_in_the_help(run):
    assert "\n  search " in run("--help").out
