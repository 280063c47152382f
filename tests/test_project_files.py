"""What tools outside of Python read of the project agrees with pyproject.toml and constraints.txt."""

import re
import shlex
import tomllib
from itertools import chain

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_house import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_test_every_python_that_is_promised():
    promised = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"] == promised
    assert workflow["jobs"]["test"]["steps"][-1]["run"] == "make test"


def test_workflows_may_only_read_and_run_no_action_that_can_change():
    assert WORKFLOWS
    for path in WORKFLOWS:
        text = path.read_text()
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        assert not any("permissions" in job for job in workflow["jobs"].values())
        actions = re.findall(r"uses: *(.*)", text)
        assert actions
        for action in actions:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_hooks_are_what_make_lint_runs():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = shlex.split(hook["entry"])[0].removeprefix(".venv/bin/")
        assert f"$(BIN)/{program}" in lint
        assert program in PINS


def test_the_dev_group_is_the_dev_extra():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert groups == {"dev": [f"{PROJECT['name']}[dev]"]}
    assert "dev" in PROJECT["optional-dependencies"]


def test_what_is_needed_is_pinned():
    extras = PROJECT["optional-dependencies"].values()
    needed = [canonicalize_name(Requirement(line).name) for line in chain(PROJECT["dependencies"], *extras)]
    assert {*needed} - {canonicalize_name(name) for name in PINS} == {PROJECT["name"]}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["title"], str(citation["version"])) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    assert citation["abstract"] == PROJECT["description"]


def test_issue_forms_ask_for_what_finds_the_fault():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()}
    assert forms.keys() == {"bug", "feature"}
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys()
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert any(field.get("validations", {}).get("required") for field in fields)
    assert any("dreamcade doctor" in field["attributes"]["label"] for field in forms["bug"]["body"])
