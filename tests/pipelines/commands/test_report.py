"""`dreamcade report` on folders of runs whose scores are known."""

import csv
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from modules.errors import UserError
from pipelines.commands.report import main
from pipelines.evaluation.report import published
from tests.pipelines.evaluation.report.runs import write

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags close in order, that ids are unique and meant, and that nothing outside is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.meant: set[str] = set(re.findall(r"url\(#([\w-]+)\)", text))
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert self.meant <= set(self.ids)
        assert "<script" not in text
        assert "@import" not in text
        assert all(url.startswith("http://www.w3.org/") for url in re.findall(r"https?://[^\"' ]+", text)), "namespaces"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                assert value.startswith("#"), value
                self.meant.add(value[1:])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(tmp_path, *arguments):
    out = tmp_path / "out"
    main([str(tmp_path / "runs"), "--out", str(out), *arguments])
    page = Page((out / "report.html").read_text())
    for picture in out.glob("*.png"):
        assert len(Image.open(picture).convert("L").getcolors()) > 20, f"{picture.name} is empty"
    return out, page, list(csv.DictReader((out / "report.csv").open()))


def test_atari(tmp_path, capsys):
    for name, level in (("dqn", 0.2), ("unet__dyna", 0.8)):
        for game in ("pong", "boxing", "krull", "alien", "hero"):
            random, human = published.score(game, "random"), published.score(game, "human")
            for seed in range(2):
                scores = {0: random, 100_000: random + (level + 0.1 * seed) * (human - random)}
                write(tmp_path / "runs" / name / game / str(seed), scores, experiment=name, game=game, seed=seed)
    out, page, rows = report(tmp_path, "--baseline", "dqn")
    assert {path.name for path in out.glob("*.png")} == {"curves.png", "aggregates.png", "games.png"}
    found = {(row["experiment"], row["statistic"]): row for row in rows if not row["game"]}
    assert float(found["dqn", "mean human-normalised"]["value"]) == pytest.approx(0.25)
    assert float(found["unet__dyna", "interquartile mean human-normalised"]["value"]) == pytest.approx(0.85)
    assert float(found["unet__dyna", "probability of improvement over dqn"]["low"]) == 1
    assert sum(row["statistic"] == "return" for row in rows) == 20
    assert page.ids[:1] == ["aggregates"]
    assert {"curves", "games", "published", "runs"} <= set(page.ids)
    assert page.tags.count("svg") == 4 + 6 + 2 * 2 + 1, "statistics, curves, two legends of two, all games"
    text = (out / "report.md").read_text()
    for words in ("| dqn | 0.250 [", "| DIAMOND |", "| unet__dyna | 1.00 [1.00, 1.00] |", "| R✓ |"):
        assert words in text
    assert "| BBF 20k |" in text
    assert "| Simulus-A |" not in text.split("## ")[1], "it has no scores in these games"
    printed = capsys.readouterr().out
    assert "0.250" in printed
    assert "report.html" in printed


def test_one_run_of_one_control_task(tmp_path):
    scores = {0: 20.0, 500: 180.0, 1000: 420.0}
    protocol = {"name": "gymnasium", "max_steps": 500}
    write(tmp_path / "runs", scores, environment="control", game="CartPole-v1", protocol=protocol)
    out, page, rows = report(tmp_path)
    assert {path.name for path in out.iterdir()} == {"curves.png", "report.html", "report.md", "report.csv"}
    assert page.ids == [name for name in page.ids if name in ("curves", "games", "runs") or name.startswith("curve0")]
    (returned,) = [row for row in rows if row["statistic"] == "interquartile mean return"]
    assert (returned["value"], returned["low"]) == ("420.0", "")
    text = (out / "report.md").read_text()
    assert "| CartPole-v1 | dqn | 1 | 1,000 | 2 | 420.0 | 420.0 |" in text
    assert "human" not in text


def test_one_game_beside_named_methods(tmp_path):
    for seed in range(2):
        write(tmp_path / "runs" / str(seed), {0: -21.0, 100_000: 15.0 + seed}, seed=seed)
    _, page, _ = report(tmp_path)
    assert "aggregates" not in page.ids
    assert page.tags.count("svg") == 3, "curve, legend, methods"


def test_scores_of_another_protocol_are_not_put_beside_published_ones(tmp_path):
    write(tmp_path / "runs", {100_000: 3.0}, protocol={"name": "machado2018"})
    out, page, _ = report(tmp_path)
    assert "published" not in page.ids
    assert "DIAMOND" not in (out / "report.md").read_text()


def test_names_are_escaped(tmp_path):
    write(tmp_path / "runs", {0: 1.0}, experiment="<b>&|$x_1$", game="<i>", environment="control")
    out, page, _ = report(tmp_path)
    assert not {"b", "i"} & set(page.tags)
    assert "<b>&\\|$x_1$" in (out / "report.md").read_text()


def test_help_and_mistakes(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for words in ("RUNS", "--out", "--baseline", "human-normalised"):
        assert words in printed
    write(tmp_path / "runs", {0: 1.0})
    for arguments, words in (
        ([], "required: runs"),
        ([str(tmp_path), "--basline", "dqn"], "the nearest is --baseline"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert words in line
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        main([str(tmp_path), "--out", str(tmp_path / "file")])
