"""Arguments of callbacks on the command line, and in a size on top of an experiment."""

import yaml

from pipelines.console import find_configs, run_name
from pipelines.training.callbacks import as_changes


def callbacks(outcome) -> dict[str, dict]:
    content = yaml.safe_load(outcome.out)
    assert content["callbacks"] == []
    return {each["class_path"].rpartition(".")[2]: each.get("init_args") for each in content["trainer"]["callbacks"]}


def test_words_become_changes():
    words = ["--callbacks.A.b", "[1, 2]", "--x", "3", "--callbacks.A.c.d=null", "--callbacks.B", "null"]
    assert as_changes(words) == [
        '--callbacks+={"A": {"b": [1, 2]}}',
        *("--x", "3"),
        '--callbacks+={"A": {"c": {"d": null}}}',
        '--callbacks+={"B": null}',
    ]


def test_callbacks_are_changed_by_their_class(run):
    changes = (
        "--callbacks.Collect.prefill",
        7,
        "--callbacks.Collect.steps_per_update=2",
        "--callbacks.DreamVideo",
        "null",
    )
    before = callbacks(run("fit", "--config", "unet", "--print_config"))
    after = callbacks(run("fit", "--config", "unet", *changes, "--print_config"))
    assert list(after) == [name for name in before if name != "DreamVideo"]
    assert after["Collect"] == before["Collect"] | {"prefill": 7, "steps_per_update": 2.0}
    assert after["PredictionReport"] == before["PredictionReport"]


def test_a_size_goes_on_top_of_its_experiment_and_the_command_line_on_top_of_that(run):
    large = callbacks(run("fit", "--config", "unet__search", "--print_config"))
    small = callbacks(run("fit", "--config", "unet__search_small", "--callbacks.Collect.prefill", 9, "--print_config"))
    assert large["SearchEvaluation"]["search"]["init_args"]["stop"]["simulations"] > 10
    assert small["SearchEvaluation"]["search"]["init_args"]["stop"]["simulations"] == 10
    assert small["SearchEvaluation"]["greedy"] == large["SearchEvaluation"]["greedy"]
    assert (small["Collect"]["prefill"], small["Collect"]["steps_per_round"]) == (9, 3)


def test_a_size_brings_its_experiment_once():
    alone = find_configs(["--config", "unet__search_small", "--x"])
    assert [word.rpartition("/")[2] for word in alone] == [
        *("--config", "unet__search.yaml", "--config", "unet__search_small.yaml", "--x")
    ]
    assert find_configs([f"--config={alone[3]}"]) == [f"--config={alone[1]}", f"--config={alone[3]}"]
    assert find_configs(alone) == alone
    assert run_name([alone[1], alone[3], "configs/debug.yaml"]) == "unet__search_small-debug"
    assert run_name([alone[1], "configs/trainer/gpu.yaml"]) == "unet__search-gpu"


def test_mistakes_are_one_line(run):
    def refused(*words):
        return run("fit", "--config", "unet", *words).refused

    assert refused("--callbacks.Colect.prefill", 3)("callbacks.Colect", "the nearest is Collect")
    assert refused("--callbacks.Collect.prefil", 3)("prefil", "prefill")
    assert refused("--callbacks.Collect.prefill", "many")("prefill", "int", "many")
    assert refused("--config", "unet__search_smal")("unet__search_smal", "configs/size/unet__search_small.yaml")
