"""What an import costs, which rooms there are, and what is pinned."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def modules_after(code):
    """Top-level names of the modules that a fresh interpreter holds after ``code``."""
    program = f"{code}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_but_the_package():
    # No stopwatch here: what takes the time is what is loaded, and a busy machine cannot change that.
    bare = modules_after("import typing")
    assert modules_after("import modelkeep") - bare == {"modelkeep"}


def test_the_facade_loads_no_server_and_no_laboratory():
    loaded = modules_after("import modelkeep; modelkeep.Keep")
    assert loaded & {"torch", "uvicorn", "starlette", "httptools", "uvloop", "sklearn", "skl2onnx", "onnx"} == set()


def test_the_server_loads_no_laboratory_and_no_language_of_templates():
    loaded = modules_after("import modelkeep.http.serve, modelkeep.http.control, modelkeep.cli.main")
    assert loaded & {"torch", "sklearn", "skl2onnx", "onnx", "scipy", "matplotlib", "jinja2"} == set()


def test_what_a_start_loads_is_never_looked_through_for_garbage():
    load = "import gc\nfrom modelkeep.cli.main import cli\nassert cli.commands"
    modules_after(f"{load} and gc.isenabled() and gc.get_freeze_count() > 100_000")


def test_importing_writes_and_configures_nothing(tmp_path):
    code = "import logging, modelkeep, modelkeep.cli.main; assert not logging.getLogger().handlers"
    subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_layers_hold_every_room():
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]
    assert layers["type"] == "layers"
    assert layers["exhaustive"] is True
    placed = {room.strip() for line in layers["layers"] for room in line.split("|")}
    package = ROOT / "src" / "modelkeep"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert placed == rooms | files


def test_every_room_is_on_the_map():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / "src" / "modelkeep").glob("*/__init__.py")}
    assert {room for room in rooms if f"| `{room}/` |" not in text} == set()


def rooms_imported():
    """For each room the rooms that its modules import, without core and errors."""
    graph = grimp.build_graph("modelkeep")
    found = {}
    for name in graph.modules - {"modelkeep"}:
        room = name.split(".")[1]
        imported = {one.split(".")[1] for one in graph.find_modules_directly_imported_by(name) if "." in one}
        found.setdefault(room, set()).update(imported - {room, "core", "errors"})
    return found


def test_the_map_of_imports_is_true():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|$", text.split("Who imports whom")[1].split("\n\n")[1], re.MULTILINE
    )
    actual = rooms_imported()
    every = set(actual) - {"__main__", "core", "errors"}
    documented = {}
    for names, said in rows:
        named = set(re.findall(r"`(\w+)`", said))
        below = every - named - {"cli", "http", "torch", "app"}
        for room in re.findall(r"`(\w+)`", names):
            documented[room] = below if said.startswith("everything below it but") else named
    assert set(documented) == every
    assert {room: extra for room in every if (extra := actual[room] - documented[room])} == {}


def test_no_directory_of_modules_is_left_out_of_the_package():
    package = ROOT / "src" / "modelkeep"
    folders = {path.parent for path in package.rglob("*.py")}
    assert {str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()} == set()


# -- pins --

PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split())
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}
OUTSIDE = {"modelkeep", "pip", "setuptools", "wheel"}
"""What brings itself: the project, and the installer of the virtual environment."""


def closure(names, extras=frozenset()):
    """Every distribution that installing ``names`` brings here, by canonical name."""
    found, waiting = set(), [(name, frozenset(extras)) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in found:
            continue
        found.add((name, wanted))
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, requirements):
            environments = [{"extra": extra} for extra in (wanted or {""})]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found}


def test_everything_that_make_installs_is_pinned():
    needed = closure(["modelkeep"], {"lab", "dev"}) - OUTSIDE
    assert needed - set(PINNED) == set()


def test_what_is_installed_is_what_is_pinned():
    for name in sorted((closure(["modelkeep"], {"lab", "dev"}) - OUTSIDE) & set(PINNED)):
        try:
            assert importlib.metadata.version(name) == PINNED[name], name
        except importlib.metadata.PackageNotFoundError:
            continue


@pytest.mark.parametrize("name", sorted(PINS))
def test_a_pin_is_one_exact_version(name):
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert re.fullmatch(r"[0-9][\w.]*", PINS[name])


def test_requirements_allow_their_pins():
    project = PROJECT["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["lab"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_one_version_everywhere():
    import modelkeep

    assert modelkeep.__version__ == PROJECT["project"]["version"]


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    described = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert sorted(phony[1].split()) == sorted(described)


def test_ci_runs_what_must_pass():
    commands = [line for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test", "make demo"]
