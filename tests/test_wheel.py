"""The wheel, built without a network and used by an interpreter that cannot see the checkout."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.test_house import PACKAGES, ROOT

COMMAND = (
    "from importlib.metadata import entry_points as e; (c,) = e(name='dreamcade', group='console_scripts'); c.load()()"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Run the interpreter of an environment with the wheel and with what it needs, but without the checkout."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    wheel.extractall(packages)
    # The paths alone: the interpreter does not follow the .pth files in them, of which one leads to the checkout.
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(others))

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [folder / "venv" / "bin" / "python", "-I", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)

    return run


def test_every_file_of_the_packages_is_in_it_and_nothing_else(wheel):
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix(): path for path in files if "__pycache__" not in path.parts}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == expected.keys()
    assert {".yaml", ".css", ".csv", ".py"} <= {Path(name).suffix for name in names}
    assert all(wheel.read(name) == path.read_bytes() for name, path in expected.items())


def test_its_packages_are_imported_from_it(python):
    imports = f"import {', '.join(PACKAGES)}; print(*[p.__file__ for p in ({', '.join(PACKAGES)})], sep='\\n')"
    outcome = python("-c", imports)
    assert outcome.returncode == 0, outcome.stderr
    paths = [Path(line) for line in outcome.stdout.splitlines()]
    assert [path.parent.name for path in paths] == list(PACKAGES)
    assert all(path.parent.parent.name == "site-packages" for path in paths)


def test_its_command_resolves_a_configuration(python):
    outcome = python("-c", COMMAND, "fit", "--config", "quickstart", "--print_config")
    assert outcome.returncode == 0, outcome.stderr
    config = yaml.safe_load(outcome.stdout)
    ours = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    assert config["model"]["class_path"] == ours["model"]["class_path"]


def test_its_doctor_speaks(python):
    """What is wrong, if anything, is the machine's."""
    outcome = python("-c", COMMAND, "doctor")
    assert outcome.returncode in (0, 1), outcome.stderr
    assert outcome.stdout.startswith("python ")
    assert "is not installed" not in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr
