"""`dreamcade plan`, and the actor that searches the emulator."""

import dataclasses

import av
import numpy as np
import pytest

from datamodules.acting import Moment
from datamodules.environments.atari import PROTOCOLS
from datamodules.environments.emulator import AtariEmulators
from modules.errors import UserError
from pipelines.acting.exploration import Exploration
from pipelines.acting.rules_actor import RulesActor
from pipelines.evaluation import results
from pipelines.search.dynamics import EmulatorDynamics
from pipelines.search.evaluators import Rollouts, Uniform
from pipelines.search.rules import Gumbel, Puct, Stop, Uct
from pipelines.search.search import Search

SMALL = "configs/size/emulator__uct_small.yaml"
PLAIN = dataclasses.replace(PROTOCOLS["atari100k"], noop_max=0)
STICKY = dataclasses.replace(PLAIN, repeat_action_probability=0.25, name="sticky")


def planner(protocol=PLAIN, game="breakout", num_envs=2, simulations=6, rule=None, depth=2, **options):
    environment = AtariEmulators(game, num_envs, protocol, variant="evaluation")
    dynamics = EmulatorDynamics(environment, life_loss_ends=True)
    search = Search(rule or Uct(), Stop(simulations), 0.99, bounds=options.pop("bounds", None))
    evaluate = Rollouts(dynamics, depth, 0.99, generator=np.random.default_rng(2))
    return environment, RulesActor(dynamics, search, evaluate, np.random.default_rng(1), **options)


def opened(environment) -> Moment:
    observation = environment.reset()
    return Moment(observation, np.ones(len(observation), bool), clone=environment.clone())


@pytest.mark.parametrize("rule", [Uct(), Puct(), Gumbel(considered=4)])
def test_a_tree_is_kept_between_moves_and_the_game_is_not_disturbed(rule):
    environment, actor = planner(rule=rule, simulations=12, reuse=True)
    observation, first = environment.reset(), np.ones(2, bool)
    for move in range(3):
        moments = environment.clone()
        actions, extras = actor.act(Moment(observation, first, clone=environment.clone()))
        assert np.array_equal(environment.observe(), observation)
        assert [a.frames for a in environment.clone()] == [a.frames for a in moments]
        assert extras["search_policy"].shape == (2, 4)
        assert extras["root_value"].shape == (2,)
        assert (actor.found.simulations == 12).all()
        visits = actor.found.visits.sum(axis=1)
        assert (visits > 12).all() if move else (visits == 12).all()
        # The root that was kept is the moment that the game has come to.
        assert [state.frames for state in actor.found.tree.states[0]] == [moment.frames for moment in moments]
        observation, first = environment.step(actions).observation, np.zeros(2, bool)
    environment, again = planner(rule=rule, simulations=12, reuse=False)
    for _ in range(2):
        again.act(Moment(environment.reset(), first, clone=environment.clone()))
        assert (again.found.visits.sum(axis=1) == 12).all()


def test_a_new_game_gets_a_new_tree():
    limited = dataclasses.replace(PLAIN, evaluation_max_frames=8)
    environment, actor = planner(limited, simulations=5)
    observation, first, frames = environment.reset(), np.ones(2, bool), []
    for _ in range(6):
        actions, _ = actor.act(Moment(observation, first, clone=environment.clone()))
        frames.append(actor.found.tree.states[0, 0].frames)
        closed = environment.clone()[0].closed
        after = environment.step(actions)
        observation, first = after.observation, np.full(2, closed)
        if first.all():
            assert actor.found.q[np.isfinite(actor.found.q)].tolist() == [0] * 8, "over is worth nothing"
    assert frames == [0, 4, 8, 0, 4, 8]


def test_what_is_worth_the_same_is_drawn():
    environment, actor = planner(simulations=12, num_envs=12)
    actions, _ = actor.act(opened(environment))
    assert len(set(actions.tolist())) > 2, "nothing is to be seen before the ball is"


def test_search_keeps_the_ball_that_standing_still_loses():
    environment = AtariEmulators("breakout", 1, PLAIN, variant="evaluation")
    environment.reset()
    for action in [1] + [0] * 12:
        environment.step(np.array([action]))
    start, lost = environment.clone(), {}
    for simulations in (1, 50):
        dynamics = EmulatorDynamics(environment, life_loss_ends=True, life_loss_reward=-1.0, persistence=2.0)
        rollouts = Rollouts(dynamics, 10, 0.99)
        search = Search(Uct(0.7), Stop(simulations), 0.99)
        actor = RulesActor(dynamics, search, rollouts, np.random.default_rng(0))
        shown = environment.restore(start)
        for _ in range(12):
            shown = environment.step(
                actor.act(Moment(shown, np.zeros(1, bool), clone=environment.clone()))[0]
            ).observation
        lost[simulations] = 5 - environment.clone()[0].lives
    assert lost == {1: 1, 50: 0}


def test_where_nothing_is_found_actions_are_held():
    environment, actor = planner(
        num_envs=1, exploration=Exploration(persistence=1.2, temperatures=(0.0,)), depth=1, simulations=8
    )
    observation, moves = environment.reset(), []
    for move in range(60):
        actions, _ = actor.act(Moment(observation, np.full(1, move == 0), clone=environment.clone()))
        moves.append(actions[0] if np.nanmax(actor.found.q) == np.nanmin(actor.found.q) else -1)
    assert -1 not in moves
    assert np.count_nonzero(np.diff(moves)) < 20


def test_its_draws_are_taken_up_again():
    environment, actor = planner(simulations=4, exploration=Exploration(temperatures=(1.0,)))
    first = environment.reset()
    state = actor.state_dict()
    generators = actor.generator, actor.dynamics.generator, actor.evaluate.generator
    one = [generator.random() for generator in generators]
    actor.load_state_dict(state)
    assert one == [generator.random() for generator in generators]
    assert actor.act(Moment(first, np.ones(2, bool), clone=environment.clone()))[0].shape == (2,)


def test_what_is_not_known_for_sure_is_refused():
    with pytest.raises(UserError, match="cannot be reused under the sticky actions of protocol sticky"):
        planner(STICKY)
    with pytest.raises(UserError, match="bounds prove outcomes, but protocol sticky has sticky actions"):
        planner(STICKY, reuse=False, bounds=(0, 1))
    environment, actor = planner(STICKY, reuse=False, num_envs=1)
    assert actor.act(opened(environment))[0].shape == (1,)


def test_no_legal_action_is_named():
    environment, actor = planner()
    legal = np.array([[True, True, True, True], [False] * 4])
    with pytest.raises(UserError, match="root 1 has no legal action"):
        actor.act(opened(environment)._replace(legal_actions=legal))
    assert Uniform(actor.dynamics)(environment.clone()).value.tolist() == [0, 0]


# The command.


def test_a_plan_leaves_a_result_and_a_film(run, tmp_path):
    for number in range(2):
        outcome = run(
            *("plan", "--config", SMALL, "--game", "Ms. Pac-Man", "--episodes", 2, "--max_steps", 5),
            *("--actor.search.stop.simulations", 3, "--actor.rollout_depth", 2, "--seed", number),
        )
        assert outcome.code == 0, outcome.err
        assert "score" in outcome.out
    folder = tmp_path / "runs" / "emulator__uct_small" / "1"
    (evaluation,) = results.read(folder)
    assert (evaluation.experiment, evaluation.game, evaluation.seed) == ("emulator__uct_small", "ms_pacman", 1)
    assert evaluation.policy == "search by Uct, 3 simulations, rollouts of 2 decisions"
    assert evaluation.protocol["name"] == "atari100k"
    assert [episode["length"] for episode in evaluation.episodes] == [5, 5]
    with av.open(str(folder / "game.mp4")) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (160, 210)
        assert len(list(film.decode(video=0))) == 5
    assert (tmp_path / "runs" / "emulator__uct_small" / "0" / results.FILE).exists()


def test_a_plan_needs_no_more_than_a_game(run, tmp_path):
    outcome = run("plan", "--game", "Pong", "--max_steps", 1, "--actor.search.stop.simulations", 2)
    assert outcome.code == 0, outcome.err
    (evaluation,) = results.read(tmp_path / "runs" / "emulator__uct" / "0")
    assert (evaluation.game, evaluation.policy[:29]) == ("pong", "search by Uct, 2 simulations,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--game", "Breakuot"], ["Breakuot", "breakout"]),
        (["--actor.search.stop.simulations", "0"], ["at least 1 simulation: got 0"]),
        (["--protocol", "machado2018"], ["reused", "sticky", "machado2018"]),
        (["--protocol", "machado"], ["machado", "machado2018"]),
        (
            ["--protocol", "machado2018", "--actor.reuse", "false", "--actor.search.bounds", "[0, 9]"],
            ["bounds", "sticky"],
        ),
        (["--actor.rollout_depth", "0"], ["rollout_depth must be at least 1: got 0"]),
        (["--episodes", "0"], ["--episodes", "at least 1"]),
        (["--max_steps", "0"], ["--max_steps", "at least 1"]),
        (["--mode", "5"], ["breakout has no mode 5", "0, 4, 8"]),
        (["--actor.exploration.persistence", "1"], ["persistence", "more than 1"]),
        (["--gmae", "Pong"], ["gmae", "game"]),
        (["--config", "emulator__utc"], ["emulator__utc", "configs/experiment/emulator__uct.yaml"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_get_one_line(run, tmp_path, arguments, words):
    assert run("plan", "--config", SMALL, *arguments).refused(*words)
    assert not (tmp_path / "runs").exists()
