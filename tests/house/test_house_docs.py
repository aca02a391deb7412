"""A verb, an option, a setting, a variable, an error or a format that is not documented fails here, and so does a dead link."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import msgspec
import pytest

import modelkeep.errors
from modelkeep.app.keep import Keep
from modelkeep.app.sections import IssuerSettings
from modelkeep.app.settings import Settings, all_settings, variable
from modelkeep.app.verbs import table
from modelkeep.cli.main import cli
from modelkeep.cli.output import exit_code
from modelkeep.errors import ModelkeepError, OverBudget
from modelkeep.http.problem import problem

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def page(name):
    return (DOCS / name).read_text("utf-8")


# -- the command line --


def walk(command, path=()):
    yield " ".join(path), command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


COMMANDS = dict(walk(cli))
VERBS = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}
SECTIONS = dict(re.findall(r"^### `modelkeep ([^`]+)`\n(.*?)(?=^##|\Z)", page("cli.md"), re.DOTALL | re.MULTILINE))


def options_of(command):
    return [option for option in command.params if isinstance(option, click.Option) and not option.hidden]


def rows_of(text):
    """Rows of the tables in ``text`` as lists of cells; ``\\|`` is a bar inside a cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def section_of(path):
    return next(text for title, text in SECTIONS.items() if re.sub(r"( [][A-Z@|]+)+$", "", title) == path)


def test_every_verb_has_its_section_and_no_section_speaks_of_a_verb_that_is_gone():
    assert sorted(re.sub(r"( [][A-Z@|]+)+$", "", title) for title in SECTIONS) == sorted(VERBS)


@pytest.mark.parametrize("path", VERBS)
def test_a_section_has_the_arguments_options_and_an_example(path):
    text, command = section_of(path), VERBS[path]
    title = next(title for title in SECTIONS if re.sub(r"( [][A-Z@|]+)+$", "", title) == path)
    arguments = [one.make_metavar(click.Context(command)) for one in command.params if isinstance(one, click.Argument)]
    assert title == " ".join([path, *arguments])
    documented = re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE)
    assert sorted(documented) == sorted(option.opts[0] for option in options_of(command))
    assert re.search(rf"\bmodelkeep\b[^\n]*\b{path}\b", text.replace("```sh\n", "")), "no example"


@pytest.mark.parametrize("path", VERBS)
def test_defaults_are_the_documented_ones(path):
    documented = {cells[0].strip("`").split(" ")[0]: cells[1] for cells in rows_of(section_of(path))}
    for option in options_of(VERBS[path]):
        said = documented[option.opts[0]]
        assert (said == "required") == bool(option.required), option.opts[0]
        if option.show_default:
            assert said.strip("`") == str(option.default), option.opts[0]


def test_options_of_every_verb_are_on_the_page():
    head = page("cli.md").split("## Exit codes")[0]
    for option in options_of(cli):
        assert f"`{option.opts[0]}" in head
        assert option.envvar is None or f"`{option.envvar}`" in head


@pytest.mark.parametrize("path", COMMANDS)
def test_every_help_has_an_example(path):
    assert re.match(r"Example: modelkeep ", COMMANDS[path].epilog or "")


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_says_what_it_is_for(path):
    assert [option.opts[0] for option in options_of(COMMANDS[path]) if not option.help] == []


# -- settings and the environment --


def in_toml(value):
    return msgspec.json.encode(value).decode().replace(",", ", ")


@pytest.mark.parametrize(("section", "field"), all_settings())
def test_every_setting_is_documented_with_its_default(section, field):
    row = re.search(rf"^\| `{section}\.{field}` \| ([^|]*) \| ([^|]+) \|$", page("settings.md"), re.MULTILINE)
    assert row
    default = getattr(getattr(Settings(), section), field)
    assert row[1] == ("made by `init`" if (section, field) == ("keep", "origin") else f"`{in_toml(default)}`")


def test_no_setting_that_is_gone_is_documented():
    documented = re.findall(r"^\| `([a-z]+)\.([a-z_]+)` \|", page("settings.md"), re.MULTILINE)
    assert documented == all_settings()


def test_every_setting_of_an_issuer_is_documented_with_its_default():
    rows = re.findall(r"^\| `issuers\[\]\.([a-z_]+)` \| ([^|]*) \|", page("settings.md"), re.MULTILINE)
    fields = msgspec.structs.fields(IssuerSettings)
    assert rows == [(one.name, "required" if one.required else f"`{in_toml(one.default)}`") for one in fields]


def test_every_environment_variable_is_documented():
    settings = {variable(section, field) for section, field in all_settings()}
    used = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text("utf-8")
        used |= set(re.findall(r"\bMODELKEEP_[A-Z][A-Z_]*[A-Z]\b", text))
        used |= set(re.findall(r"(?:environ\.get\(|environ\[|getenv\()\s*\"(\w+)\"", text))
    documented = set(re.findall(r"^\| `(\w+)` \|", page("settings.md").split("## Environment")[1], re.MULTILINE))
    assert used - settings == documented


# -- errors --


def kinds():
    found = vars(modelkeep.errors).values()
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, ModelkeepError)]


def example(kind):
    return kind("why", 1.0) if issubclass(kind, OverBudget) else kind("why")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.code)
def test_every_error_is_documented_with_its_status_and_exit_code(kind):
    row = re.search(rf"^\| `{kind.code}` \| `{kind.__name__}` \| (\d+) \| (\d) \|", page("errors.md"), re.MULTILINE)
    assert row
    assert (int(row[1]), int(row[2])) == (problem(example(kind)).status, exit_code(example(kind)))


def test_the_command_line_page_puts_every_error_under_its_exit_code():
    rows = re.findall(r"^\| `(\d+)` \| .*", page("cli.md").split("## Exit codes")[1].split("##")[0], re.MULTILINE)
    assert rows == ["0", "1", "2", "3", "130"]
    for kind in kinds():
        if kind is not ModelkeepError:
            row = next(line for line in page("cli.md").splitlines() if line.startswith(f"| `{exit_code(example(kind))}` |"))
            assert f"`{kind.code}`" in row


# -- the admin API --


def test_every_verb_of_the_admin_api_is_documented_with_its_parameters():
    rows = rows_of(page("admin-api.md").split("## Verbs")[1])[1:]
    verbs = table(Keep)
    assert sorted(name.strip("`") for name, *_ in rows) == sorted(verbs)
    for name, said, action, answer in rows:
        verb = verbs[name.strip("`")]
        assert action == f"`{verb.action}`", name
        assert re.findall(r"`(\w+)`(?: = `([^`]*)`)?", said) == [
            (field.name, "" if field.required else msgspec.json.encode(field.default).decode())
            for field in msgspec.structs.fields(verb.params)
        ], name
        named = re.search(r"`(\w+)`", answer)
        assert named is None or named[1] in str(verb.result), name


# -- formats, decisions, links --


def test_every_benchmark_is_documented():
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("_")}
    assert {name for name, _ in LED} == set(re.findall(r"^\| `(\w+)` \|", page("BENCHMARKS.md"), re.MULTILINE)) == names


LED = re.findall(r"^\| `(\w+)` \|.*\]\((benchmarks/[\w-]+\.md)\) \|$", page("BENCHMARKS.md"), re.MULTILINE)


@pytest.mark.parametrize(("name", "target"), LED)
def test_a_bench_leads_to_the_page_that_has_its_figures(name, target):
    assert re.search(rf"^\| `{name}` \|", page(target), re.MULTILINE)


FORMATS = {
    "modelkeep/container": "container.md",
    "modelkeep/ledger/statements.py": "statements.md",
    "modelkeep/ledger/tiles.py": "log.md",
    "modelkeep/serving/journal.py": "audit.md",
    "modelkeep/custody/oms.py": "oms.md",
    "modelkeep/crypto/puzzle.py": "puzzle.md",
}


@pytest.mark.parametrize(("source", "name"), FORMATS.items())
def test_every_wire_format_has_a_page(source, name):
    assert (ROOT / "src" / source).exists()
    assert len(page(f"formats/{name}")) > 1_000
    assert f"docs/formats/{name}" in (ROOT / "README.md").read_text("utf-8")


def test_every_format_page_is_known_here():
    assert {path.name for path in (DOCS / "formats").glob("*.md")} == set(FORMATS.values())


def test_decisions_are_numbered_without_gaps():
    numbers = sorted(int(path.name[:4]) for path in (DOCS / "adr").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
    for path in (DOCS / "adr").glob("*.md"):
        assert path.read_text("utf-8").startswith(f"# {int(path.name[:4])}. ")


PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def anchors(path):
    titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_resolves(path):
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_the_readme_leads_to_every_document(path):
    assert f"](docs/{path.name})" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_that_documents_name_exists(path):
    rooms = {found.name for found in (ROOT / "src" / "modelkeep").iterdir() if found.is_dir()}
    for name in re.findall(
        r"`((?:src/modelkeep/|tests/|docs/)?[\w/]+/[\w./]*\.(?:py|cedar|cedarschema|svg))`", path.read_text("utf-8")
    ):
        if name.split("/")[0] in {*rooms, "src", "tests", "docs"}:
            candidates = (ROOT / name, ROOT / "src" / "modelkeep" / name)
            assert any(found.exists() for found in candidates), name


def tracked():
    """Text files that are or would be committed; all files where git is not at hand."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]


def test_nothing_committed_names_a_place_on_somebodys_machine():
    private = re.compile(rb"(?<![\w.])/(?:home|Users|root|work|workspace)/[\w.]+|(?<![\w.])[A-Z]:\\\\Users")
    for path in tracked():
        if path.is_file() and path.resolve() != Path(__file__).resolve():
            found = private.search(path.read_bytes())
            assert found is None, f"{path.relative_to(ROOT)}: {found[0]!r}"


# -- commands that documents and helps show --


def commands_shown():
    """Every command of modelkeep in a block of shell of a document, as words, and every example of a help."""
    for path in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"modelkeep\b", line.strip()):
                    yield str(path.relative_to(ROOT)), line.strip()
    for verb, command in COMMANDS.items():
        for line in re.findall(r"Example: (modelkeep .*)", command.epilog or ""):
            yield f"{verb or 'modelkeep'} --help", line


SHOWN = sorted(set(commands_shown()))


def test_there_are_commands_to_look_at():
    assert len(SHOWN) > 300


@pytest.mark.parametrize(("where", "line"), SHOWN, ids=[f"{where}: {line[:60]}" for where, line in SHOWN])
def test_a_command_that_is_shown_is_one_that_is_taken(where, line):
    words = shlex.split(line, comments=True)
    ends = [at for at, word in enumerate(words) if re.match(r"(&&?|\|\|?|;|<)$|2?>", word)]
    words = [word for word in words[1 : min(ends, default=len(words))] if word != "--json"]
    context = click.Context(cli, info_name="modelkeep")
    command, name = cli, "modelkeep"
    while isinstance(command, click.Group):
        context = command.make_context(name, words, parent=context if command is not cli else None)
        assert context._protected_args or context.args, f"{where}: no verb"
        words = [*context._protected_args, *context.args]
        name, command, words = command.resolve_command(context, words)
        assert command is not None
    command.make_context(name, list(words), parent=context)
