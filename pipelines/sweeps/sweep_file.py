"""Sweep files in W&B's format: reads and checks them, and turns them into commands and Optuna distributions."""

from __future__ import annotations

import io
import json
import math
import numbers
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from modules.errors import UserError, nearest
from pipelines import cli
from pipelines.console import CONFIGS

KEYS = (
    *("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"),
    *("name", "description", "project", "entity"),
)
METHODS = ("grid", "random", "bayes")
DISTRIBUTIONS = {
    "uniform": (),
    "int_uniform": ("integer",),
    "q_uniform": ("quantised",),
    "log_uniform": ("log", "exponents"),
    "log_uniform_values": ("log",),
    "q_log_uniform": ("log", "exponents", "quantised"),
    "q_log_uniform_values": ("log", "quantised"),
}
"""W&B's distributions that Optuna can sample. W&B's server has more: normal, beta and inverse ones."""


@dataclass(frozen=True)
class Parameter:
    """Distribution of one key of the command line.

    Args:
        name: dotted key, such as model.policy.lr.
        choices: values to choose from; empty if the parameter is a number.
        low: smallest number.
        high: largest number.
        log: draw the logarithm of the number uniformly.
        step: step to whose multiples the number is rounded, as W&B does; None does not round.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    def draw(self, trial: optuna.Trial) -> Any:
        """Return the value of a trial; repeated calls return the same value."""
        if len(self.choices) == 1:
            return self.choices[0]
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.step == 1 and isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            return trial.suggest_int(self.name, self.low, self.high)
        return self.rounded(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def rounded(self, number: float) -> float | int:
        """Return the nearest multiple of the step, which is an integer if the step is an integer."""
        return number if self.step is None else round(number / self.step) * self.step

    def grid(self) -> tuple[Any, ...]:
        """Return all possible values, or an empty tuple if the range is continuous."""
        if self.choices or self.step is None or self.log:
            return self.choices
        first, last = round(self.low / self.step), round(self.high / self.step)
        return tuple(multiple * self.step for multiple in range(first, last + 1))

    def samples(self) -> tuple[Any, ...]:
        """Return representative values: every choice, or both ends and the middle of the range."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.choices or tuple(map(self.rounded, (self.low, middle, self.high)))


@dataclass(frozen=True)
class Sweep:
    """A valid sweep file.

    Args:
        path: path of the file.
        content: content of the file as plain data.
        parameters: parameters that the sweep draws.
        metric: name of the metric, which is a column of metrics.csv.
        goal: direction of the metric, minimize or maximize.
    """

    path: Path
    content: dict[str, Any]
    parameters: tuple[Parameter, ...]
    metric: str
    goal: Literal["minimize", "maximize"]

    @property
    def method(self) -> str:
        """Return the search method: grid, random or bayes."""
        return self.content["method"]

    @property
    def stops_early(self) -> bool:
        """Return whether the sweep stops bad trials early."""
        return "early_terminate" in self.content

    def reaches_target(self, value: float | None) -> bool:
        """Return whether the metric reaches the file's target."""
        target = self.content["metric"].get("target")
        if target is None or value is None:
            return False
        return value >= target if self.goal == "maximize" else value <= target

    def options(self, values: Mapping[str, Any]) -> list[str]:
        """Return the options of `dreamcade fit` for these values, exactly as `wandb agent` forms them."""
        words = create_sweep_command(list(self.content["command"]))
        macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
        options: list[str] = []
        for word in words[words.index("fit") + 1 :]:
            options += macros[word[2:-1]] if word.startswith("${") else [str(word)]
        return options

    def combinations(self) -> list[dict[str, Any]]:
        """Return combinations of values that contain every choice and both ends of every range."""
        samples = {parameter.name: parameter.samples() for parameter in self.parameters}
        most = max(map(len, samples.values()))
        return [{name: values[row % len(values)] for name, values in samples.items()} for row in range(most)]

    def size(self) -> int | None:
        """Return the number of trials of a grid; None for the endless methods random and bayes."""
        return math.prod(len(parameter.grid()) for parameter in self.parameters) if self.method == "grid" else None

    def sampler(self, number: int, seed: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of a trial's values, seeded by its number, so that a killed sweep resumes identically.

        Args:
            number: number of the trial.
            seed: seed of the sweep.
        """
        if self.method == "grid":
            grids = {parameter.name: parameter.grid() for parameter in self.parameters}
            return optuna.samplers.GridSampler({k: v for k, v in grids.items() if len(v) > 1}, seed=seed)
        drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        if self.method == "random":
            return optuna.samplers.RandomSampler(seed=drawn)
        return optuna.samplers.TPESampler(n_startup_trials=5, constant_liar=True, seed=drawn)

    def pruner(self) -> optuna.pruners.BasePruner:
        """Return the pruner, which stops bad trials early.

        W&B's hyperband is one bracket of Hyperband: asynchronous successive halving. After n values of the metric, and
        again after eta times as many, the best 1/eta of the trials continue. The file gives n as `min_iter`, or by
        `max_iter` and `s`.
        """
        if not self.stops_early:
            return optuna.pruners.NopPruner()
        rules = self.content["early_terminate"]
        eta = rules.get("eta", 3)
        first = rules["min_iter"] if "min_iter" in rules else rules["max_iter"] // eta ** rules["s"]
        return optuna.pruners.SuccessiveHalvingPruner(max(1, first), eta)

    def check(self) -> None:
        """Raise a UserError unless `dreamcade fit` accepts every value that may be drawn. Nothing is trained."""
        for values in self.combinations():
            nonfinite_reason = _complaint(self.options(values))
            if nonfinite_reason is not None:
                raise UserError(f"{self.path}: {self._wrong_key() or nonfinite_reason}")

    def _wrong_key(self) -> str | None:
        # The parser reports only the last part of a wrong key, so compare the whole key with all known keys.
        output = io.StringIO()
        fixed = {p.name: p.choices[0] for p in self.parameters if p.name == "config"}
        if _complaint(self.options(fixed), output) is not None:
            return None
        known = set(_keys(yaml.safe_load(output.getvalue())))
        for name in [parameter.name for parameter in self.parameters if parameter.name != "config"]:
            if _short(name) not in known:
                last = nearest(name.rpartition(".")[2], {key.rpartition(".")[2] for key in known})
                alike = [key for key in known if key.rpartition(".")[2] == last]
                return f"unknown key {name}, the nearest is {nearest(_short(name), alike)}"
        return None


def find(path: str) -> Path:
    """Return the path of a sweep file, which is the user's file or one of the project's by its name."""
    own = {file.stem: file for file in sorted((CONFIGS / "sweep").glob("*.yaml"))}
    if Path(path).is_file():
        return Path(path)
    name = Path(path).stem
    if name not in own:
        raise UserError(f"there is no sweep file {path}, the nearest is configs/sweep/{nearest(name, own)}.yaml")
    return own[name]


def read(path: Path) -> Sweep:
    """Read a sweep file in W&B's format: https://docs.wandb.ai/models/sweeps/sweep-config-keys.

    Raises:
        UserError: the file is no sweep file, W&B would not accept it, or only W&B's server could run it.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    try:
        content = _section(content, "a sweep file", KEYS, ("command", "method", "metric", "parameters"))
        if content["method"] not in METHODS:
            raise UserError(f"method is one of {', '.join(METHODS)}, not {content['method']}")
        metric = _section(content["metric"], "metric", ("name", "goal", "target"), ("name",))
        goal = metric.get("goal", "minimize")
        if goal not in ("minimize", "maximize"):
            raise UserError(f"metric.goal is minimize or maximize, not {goal}")
        _check_command(content["command"])
        if "early_terminate" in content:
            _check_early_terminate(content["early_terminate"])
        parameters = tuple(_parameters(content["parameters"]))
        if not parameters:
            raise UserError("parameters is empty: expected keys of the command line, such as model.lr")
        for parameter in parameters if content["method"] == "grid" else ():
            if not parameter.grid():
                raise UserError(f"parameters.{parameter.name}: a grid needs values, int_uniform or q_uniform")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Sweep(path, content, parameters, str(metric["name"]), goal)


def _section(found: Any, name: str, keys: Iterable[str], needed: Iterable[str]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{name} holds {found!r}: expected {', '.join(needed)}")
    for key in found:
        if key not in keys:
            raise UserError(f"unknown key {key} in {name}, the nearest is {nearest(str(key), keys)}")
    for key in needed:
        if key not in found:
            raise UserError(f"{name} needs {key}")
    return found


def _check_command(command: Any) -> None:
    words = [str(word) for word in command] if isinstance(command, list) else []
    before = words[: words.index("fit")] if "fit" in words else []
    if not any(Path(word).name in ("dreamcade", "pipelines.cli") for word in before):
        raise UserError('command must run dreamcade fit: ["${env}", dreamcade, fit, --config, FILE, "${args}"]')
    macros = [word for word in words[len(before) :] if word.startswith("${") and not word.startswith("${envvar:")]
    if len(macros) != 1 or macros[0] not in ("${args}", "${args_no_equals}"):
        raise UserError('command must have "${args}" once after fit: it becomes the options --key=value')


def _check_early_terminate(rules: Any) -> None:
    rules = _section(rules, "early_terminate", ("type", "min_iter", "max_iter", "s", "eta", "strict"), ("type",))
    if rules["type"] != "hyperband":
        raise UserError(f"early_terminate.type must be hyperband: got {rules['type']}")
    if "min_iter" not in rules:
        _section(rules, "early_terminate without min_iter", rules, ("max_iter", "s"))
    for key, least in (("min_iter", 1), ("max_iter", 1), ("s", 1), ("eta", 2)):
        if not isinstance(rules.get(key, least), int) or rules.get(key, least) < least:
            raise UserError(f"early_terminate.{key} must be an integer of at least {least}: got {rules[key]!r}")


def _parameters(found: Any, prefix: str = "") -> Iterable[Parameter]:
    if not isinstance(found, dict):
        raise UserError(f"parameters{prefix and f'.{prefix}'} holds {found!r}: expected keys with values")
    for key, rules in found.items():
        name = f"{prefix}{key}"
        if isinstance(rules, dict) and set(rules) == {"parameters"}:
            yield from _parameters(rules["parameters"], f"{name}.")
        else:
            try:
                yield _parameter(name, rules)
            except UserError as error:
                raise UserError(f"parameters.{name}: {error}") from None


def _parameter(name: str, rules: Any) -> Parameter:
    rules = _section(rules, "a parameter", ("value", "values", "distribution", "min", "max", "q"), ())
    kind = rules.get("distribution")
    if "value" in rules or "values" in rules:
        expected = "constant" if "value" in rules else "categorical"
        _section(rules, f"a {expected} parameter", ("value" if "value" in rules else "values", "distribution"), ())
        if kind not in (None, expected):
            raise UserError(f"distribution must be {expected}: got {kind}")
        choices = [rules["value"]] if "value" in rules else rules["values"]
        if not isinstance(choices, list) or not choices:
            raise UserError(f"values must be a list: got {choices!r}")
        if None in choices:
            raise UserError('W&B would pass null as None: write "null" in quotes')
        return Parameter(name, tuple(c if isinstance(c, bool | int | float | str) else json.dumps(c) for c in choices))
    low, high, step = (_number(rules, key) for key in ("min", "max", "q"))
    if low is None or high is None or low > high:
        raise UserError(f"expected value, values, or min and a larger max: got {rules}")
    if kind is None:
        kind = "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform"
    if kind not in DISTRIBUTIONS:
        raise UserError(f"distribution {kind} needs W&B's server: expected one of {', '.join(DISTRIBUTIONS)}")
    traits = DISTRIBUTIONS[kind]
    if "quantised" not in traits and step is not None:
        raise UserError(f"q is only for quantised distributions, not for {kind}")
    if "integer" in traits and not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"min and max of int_uniform must be integers: got {low} and {high}")
    if "exponents" in traits:
        low, high = math.exp(low), math.exp(high)
    if "log" in traits and low <= 0:
        raise UserError(f"min of {kind} must be above 0: got {low}")
    step = 1 if "integer" in traits else (step or 1) if "quantised" in traits else None
    return Parameter(name, (), low, high, "log" in traits, step)


def _number(rules: Mapping[str, Any], key: str) -> Any:
    value = rules.get(key)
    if value is not None and (not isinstance(value, numbers.Real) or isinstance(value, bool)):
        raise UserError(f"{key} must be a number: got {value!r}; YAML reads 1.0e-5 as a number, but not 1e-5")
    return value


def _complaint(options: list[str], output: io.StringIO | None = None) -> str | None:
    # The error of the real command line for these options; nothing is trained.
    errors = io.StringIO()
    try:
        with redirect_stdout(output or io.StringIO()), redirect_stderr(errors):
            cli.main(["fit", *options, "--print_config"])
    except SystemExit as end:
        if end.code:
            lines = [line for line in errors.getvalue().splitlines() if line.startswith("dreamcade: ")]
            return lines[-1].removeprefix("dreamcade: ")
    return None


def _short(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")


def _keys(config: Any, prefix: str = "") -> Iterable[str]:
    # The dotted keys of a resolved configuration, as a user types them. Keys of list elements follow the list's key.
    for element in config if isinstance(config, list) else [config]:
        for key, value in element.items() if isinstance(element, dict) else ():
            name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
            yield name
            yield from _keys(value, name)
