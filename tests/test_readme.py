"""What README and docs say can be typed."""

import ast
import re
from pathlib import Path

import pytest

from pipelines.sweeps.sweep_file import find, read
from tests.running import run  # noqa: F401

PROJECT = Path(__file__).resolve().parent.parent
LONG = ("unet.md", "world_models.md", "muzero.md", "search.md", "mbpo.md", "dyna_q.md")
"""Pages whose commands `make gates` runs; most of them stand in README too."""
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("dreamcade ") for line in lines if line.startswith("dreamcade ")]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=pytest.mark.slow if page.name in LONG else ()) for page in PAGES],
)
def test_every_command_runs_in_the_order_given(run, page):  # noqa: F811
    """Small: with configs/debug.yaml on top, `last` finds the run that the command before left.

    An experiment as it is, whose run no later command of the page needs, is left to test_runs.py, which runs them all.
    """
    lines = commands(page)
    for number, command in enumerate(lines):
        words = command.split()
        if plain := re.fullmatch(r"fit --config (configs/(?:experiment|size)/(\w+)\.yaml)", command):
            needs = (f"runs/{plain[2]}/", f"runs/{plain[2]} ", f"{plain[1]} --ckpt_path last")
            if not any(word in f"{later} " for later in lines[number + 1 :] for word in needs):
                assert (PROJECT / plain[1]).exists(), command
                continue
        if words[0] == "collect":
            words += ["--steps", "256", "--num_envs", "2"]
        elif words[0] == "evaluate":
            words += ["--episodes", "2", "--max_steps", "50"]
        elif words[0] == "plan":
            words += ["--actor.search.stop.simulations", "3", "--max_steps", "6"]
        elif words[0] == "sweep":
            read(find(words[1])).check()
            continue
        elif words[0] == "doctor":  # what it says is the machine's
            continue
        elif words[0] not in ("report", "search") and not {"--help", "--model.help"} & {*words}:
            config = Path(words[words.index("--config") + 1])
            words += ["--trainer.default_root_dir", folder(words, config), "--config", "configs/debug.yaml"]
            if "--ckpt_path" in words:
                words += ["--trainer.max_steps", "6"]
        outcome = run(*words)
        assert outcome.code == 0, (command, outcome.err)


def folder(words: list[str], config: Path) -> str:
    """Where the plain command would put its run, and a folder of its own for every other one."""
    plain = "last" in words or words == ["fit", "--config", str(config)]
    return f"runs/{config.stem}/0" if plain else f"runs/{'-'.join(words).replace('/', '_')}"


def test_make_knows_the_commands_of_the_readme():
    makefile = (PROJECT / "Makefile").read_text()
    readme = (PROJECT / "README.md").read_text()
    targets = set(re.findall(r"^make (\w+)", readme, re.MULTILINE))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "dreamcade fit --config configs/quickstart.yaml" in makefile


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_found():
    linked = {link for page in PAGES for link in re.findall(r"(\w+\.md)[#)]", page.read_text())}
    assert not {page.name for page in PAGES} - linked - {"README.md"}


def test_the_hooks_are_told_in_the_order_in_which_they_run(run):  # noqa: F811
    page = (PROJECT / "docs" / "architecture.md").read_text()
    section = page.partition("## The hooks in order")[2].partition("\n## ")[0]
    (command,) = re.findall(r"```sh\ndreamcade (.*?)\n", section)
    outcome = run(*command.split())
    assert outcome.code == 0, outcome.err
    told = re.findall(r"^\|[^|]*\| `(\w+\.\w+)` \|", section, re.MULTILINE)
    assert told == re.findall(r"^  (\w+\.\w+) ", outcome.out, re.MULTILINE)
    assert "Agent.training_step" in told


def test_the_contracts_are_in_the_files_that_the_page_names():
    page = (PROJECT / "docs" / "architecture.md").read_text()
    section = page.partition("## The contracts")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `([\w/]+\.py)` \|", section, re.MULTILINE)
    for names, file in rows:
        source = (PROJECT / file).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), f"{file} does not define {name}"
    assert len(rows) > 10


def members() -> dict[str, set[str]]:
    """What every class of the project has: methods, fields and arguments, those of its parents included."""
    own: dict[str, set[str]] = {}
    parents: dict[str, list[str]] = {}
    files = [file for folder in ("modules", "datamodules", "pipelines") for file in (PROJECT / folder).rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                inside = [inner for line in node.body for inner in ast.walk(line)]
                found = {inner.name for inner in inside if isinstance(inner, ast.FunctionDef)}
                found |= {inner.arg for inner in inside if isinstance(inner, ast.arg)}
                found |= {inner.id for inner in inside if isinstance(inner, ast.Name) and type(inner.ctx) is ast.Store}
                own.setdefault(node.name, set()).update(found)
                parents.setdefault(node.name, []).extend(base.id for base in node.bases if isinstance(base, ast.Name))

    def inherited(name: str) -> set[str]:
        return own.get(name, set()).union(*(inherited(parent) for parent in parents.get(name, []) if parent != name))

    return {name: inherited(name) for name in own}


def test_what_a_page_names_of_a_class_is_there():
    """`Collect.prefill` and the like: a setting that was renamed must be renamed in the docs."""
    known, checked = members(), 0
    for page in PAGES:
        for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)(?:\(.*?\))?`", page.read_text()):
            if owner in known:
                checked += 1
                assert name in known[owner], f"{page.name}: {owner} has no {name}"
    assert checked > 30


def test_planning_in_a_model_of_one_s_own():
    """Its assertion is in the page."""
    (block,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "search.md").read_text(), re.DOTALL)
    exec(compile(block, "docs/search.md", "exec"), {"__name__": "docs"})
