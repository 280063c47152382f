"""Sweep files: what is drawn, the command that it becomes, and what is refused."""

import math

import optuna
import pytest
import yaml

from modules.errors import UserError
from pipelines.console import CONFIGS
from pipelines.sweeps.sweep_file import find, read

FILES = sorted((CONFIGS / "sweep").glob("*.yaml"))


def drawn(sweep, number=200):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    (parameter,) = sweep.parameters
    return [parameter.draw(study.ask()) for _ in range(number)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_line_takes_all_that_the_project_s_own_files_draw(path):
    sweep = read(path)
    sweep.check()
    assert sweep.options(sweep.combinations()[0])
    assert {"program", "name", "project"} <= set(sweep.content), "W&B shows them"


def test_every_method_and_early_stopping_have_a_file():
    found = [read(path) for path in FILES]
    assert {sweep.method for sweep in found} == {"grid", "random", "bayes"}
    assert any(sweep.stops_early for sweep in found)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "model.policy.optimization.lrr",
            ["unknown key model.policy.optimization.lrr", "model.policy.optimization.lr"],
        ),
        ("model.lr", ["unknown key model.lr", "model.policy.optimization.lr"]),
        ("data.batch_siz", ["unknown key data.batch_siz", "data.sampling.batch_size"]),
        ("trainer.callbacks.prefil", ["unknown key trainer.callbacks.prefil", "trainer.callbacks.prefill"]),
        ("modell.policy.optimization.lr", ["modell.policy.optimization.lr", "model.policy.optimization.lr"]),
    ],
)
def test_a_wrong_key_in_one_of_them(tmp_path, key, words):
    content = yaml.safe_load((CONFIGS / "sweep" / "dqn_hyperband.yaml").read_text())
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content | {"parameters": content["parameters"] | {key: {"values": [1, 2]}}}))
    with pytest.raises(UserError) as error:
        read(path).check()
    for word in [str(path), *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_the_command_line_refuses(sweep):
    found = sweep(
        command=["dreamcade", "fit", "--config", "configs/experiment/dqn_cartpole.yaml", "${args}"],
        parameters={"data.sampling.batch_size": {"values": [32, 64, 0.5]}},
    )
    with pytest.raises(UserError, match=r"batch_size.*0\.5"):
        found.check()


@pytest.mark.parametrize(
    ("rules", "low", "high", "kind"),
    [
        ({"min": 2, "max": 5}, 2, 5, int),
        ({"distribution": "int_uniform", "min": 2, "max": 5}, 2, 5, int),
        ({"min": 2.0, "max": 5}, 2, 5, float),
        ({"distribution": "uniform", "min": 2, "max": 5}, 2, 5, float),
        ({"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0}, 1e-4, 1, float),
        ({"distribution": "log_uniform", "min": -9.0, "max": 0.0}, math.exp(-9), 1, float),
        ({"distribution": "q_uniform", "min": 2, "max": 16, "q": 2}, 2, 16, int),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, 0, 1, float),
        ({"distribution": "q_log_uniform_values", "min": 8, "max": 256, "q": 8}, 8, 256, int),
    ],
)
def test_numbers_are_drawn_as_w_and_b_draws_them(sweep, rules, low, high, kind):
    values = drawn(sweep(method="random", parameters={"rate": rules}))
    assert {type(value) for value in values} == {kind}
    assert low <= min(values) <= low + 0.1 * (high - low)
    assert high - 0.3 * (high - low) <= max(values) <= high
    if "q" in rules:
        assert all(value % rules["q"] == 0 for value in values)
    if "log" in rules.get("distribution", ""):
        below = sum(value < math.sqrt(low * high) for value in values) / len(values)
        assert 0.35 < below < 0.65, "half of them lie below the geometric mean"


def test_a_grid_holds_every_combination_once(sweep):
    found = sweep(
        parameters={
            "a": {"values": [0.1, 0.2]},
            "b": {"value": 7},
            "c": {"min": 1, "max": 3},
            "d": {"parameters": {"e": {"distribution": "q_uniform", "min": 0, "max": 4, "q": 4}}},
        }
    )
    assert found.size() == 12
    study = optuna.create_study()
    seen = set()
    for number in range(12):
        study.sampler = found.sampler(number, 0)
        trial = study.ask()
        seen.add(tuple((parameter.name, parameter.draw(trial)) for parameter in found.parameters))
    assert len(seen) == 12
    assert {dict(values)["d.e"] for values in seen} == {0, 4}


def test_bayes_looks_where_it_was_good(sweep):
    found = sweep(method="bayes", parameters={"rate": {"min": 0.0, "max": 1.0}})
    study = optuna.create_study(direction="maximize")
    rates = []
    for number in range(20):
        study.sampler = found.sampler(number, 0)
        trial = study.ask()
        rates.append(found.parameters[0].draw(trial))
        study.tell(trial, rates[-1])
    assert sum(rates[10:]) / 10 > 0.7, "at random it is a half"


def test_the_command_is_that_of_the_agent(sweep):
    found = sweep(
        command=["${env}", "python", "-m", "pipelines.cli", "fit", "--config", "x.yaml", "${args}", "--last"],
        parameters={"a": {"values": [True]}, "b": {"values": [[1, 3]]}, "c": {"values": ["null"]}},
    )
    assert found.options(found.combinations()[0]) == [
        "--config",
        "x.yaml",
        "--a=True",
        "--b=[1, 3]",
        "--c=null",
        "--last",
    ]
    found = sweep(command=["dreamcade", "fit", "${args_no_equals}"])
    assert found.options({"rate": 1}) == ["--rate", "1"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"methd": "grid"}, "unknown key methd .* nearest is method"),
        ({"method": "gird"}, "grid, random, bayes, not gird"),
        ({"metric": None}, "needs metric"),
        ({"metric": {"name": "x", "goal": "maximise"}}, "not maximise"),
        ({"command": ["python", "train.py", "${args}"]}, "must run dreamcade fit"),
        ({"command": ["dreamcade", "fit"]}, "once after fit"),
        ({"command": ["dreamcade", "fit", "${args_no_hyphens}"]}, "once after fit"),
        ({"parameters": {}}, "parameters is empty"),
        ({"parameters": {"rate": {"vales": [1]}}}, "parameters.rate: unknown key vales .* values"),
        ({"parameters": {"rate": {"values": 1}}}, "values must be a list"),
        ({"parameters": {"rate": {"values": [None]}}}, "null"),
        ({"parameters": {"rate": {"min": "1e-5", "max": 1}}}, "1.0e-5"),
        ({"parameters": {"rate": {"min": 2, "max": 1}}}, "a larger max"),
        ({"parameters": {"rate": {"min": 0.0, "max": 1.0}}}, "a grid needs values"),
        ({"method": "random", "parameters": {"rate": {"distribution": "normal", "min": 0, "max": 1}}}, "W&B's server"),
        ({"early_terminate": {"type": "envelope"}}, "hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "needs max_iter"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "at least 1"),
    ],
    ids=str,
)
def test_a_file_that_is_wrong(sweep, content, words):
    with pytest.raises(UserError, match=words):
        sweep(**content)


@pytest.mark.parametrize(
    ("rules", "first"), [({"min_iter": 4}, 4), ({"max_iter": 27, "s": 2}, 3), ({"max_iter": 16, "s": 3, "eta": 2}, 2)]
)
def test_hyperband_halves_where_w_and_b_does(sweep, rules, first):
    found = sweep(early_terminate={"type": "hyperband"} | rules)
    study = optuna.create_study(pruner=found.pruner())
    for value in (0.0, 1.0):
        trial = study.ask()
        for number in range(1, first + 1):
            trial.report(value, number)
            assert trial.should_prune() == (value == 1.0 and number == first)


def test_files_are_found_by_name(tmp_path):
    assert find("mbpo_bayes") == CONFIGS / "sweep" / "mbpo_bayes.yaml"
    (tmp_path / "mine.yaml").touch()
    assert find(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(UserError, match=r"nearest is configs/sweep/mbpo_bayes\.yaml"):
        find("mbpo_bays")
