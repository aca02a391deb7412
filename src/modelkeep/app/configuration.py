"""Settings as an operator asks about them: each with its value and where it came from, and everything that is wrong at once.

Structure is checked by the types in ``app/settings.py``, whatever they are: tables, tables by name, arrays of tables. What a
type cannot say (values that contradict each other, files that are not there, weak choices) is in ``app/cautions.py``.
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from modelkeep.app.cautions import cautions
from modelkeep.app.settings import FILE_NAME, FLAGS, PREFIX, Settings, all_settings, from_text, load, plainly, variable
from modelkeep.errors import Invalid, Missing, Unavailable

Origin = Literal["flag", "environment", "file", "default"]
_OTHERS = ("DIR", "SERVER", "PASSPHRASE_FILE", "SEAL_PASSPHRASE_FILE", "RING_PASSPHRASE_FILE", "SET")
_NAMED_BY_RELEASES = PREFIX + "UPSTREAM_TOKEN_"
_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^\s]*@")
"""Up to the last @: some clients take passwords with @ and / in them, and hiding too much does no harm."""
_OPTION = re.compile(r"([?&;#](?:[a-z_-]*(?:password|secret|token|pin-value|key))=)[^&;#]*", re.IGNORECASE)
_SECRET = re.compile(r"(?:^|_)(?:password|secret|token|pin|passphrase)$")


class Row(msgspec.Struct, frozen=True):
    """One setting. ``value``: secrets in it are hidden; ``where``: the file, variable or option that set it, "" by default."""

    name: str
    value: Any
    origin: Origin
    where: str = ""


class Problem(msgspec.Struct, frozen=True):
    """Something about the settings: an error stops a process, a warning is for somebody to decide."""

    level: Literal["error", "warning"]
    setting: str
    message: str


def set_flag(text: str, environment: "os._Environ[str] | dict[str, str]" = os.environ) -> None:
    """Take ``section.field=value`` of ``--set``: it wins over the environment, here and in what this process starts.

    Raises Invalid (no such setting, or not of that form).
    """
    name, equals, value = text.partition("=")
    section, dot, field = name.strip().partition(".")
    if not equals or not dot:
        raise Invalid(f"--set takes SECTION.SETTING=VALUE, such as gateway.port=9443, unlike {name[:60]!r}")
    if (section, field) not in all_settings():
        known = [f"{one}.{other}" for one, other in all_settings()]
        raise Invalid(f"there is no setting {name[:60]}{_meant(name, known)}")
    environment[variable(section, field)] = value
    earlier = environment.get(FLAGS, "").split()
    environment[FLAGS] = " ".join(sorted({*earlier, f"{section}.{field}"}))


def rows(directory: Path, environment: Mapping[str, str] = os.environ) -> tuple[Row, ...]:
    """Every setting in force. Raises Missing (no keep), Invalid (something is wrong: ask ``problems`` for all of it)."""
    settings = load(directory, environment)
    table = _table(directory / FILE_NAME)
    flags = set(environment.get(FLAGS, "").split())
    found = []
    for path, value in _leaves(msgspec.to_builtins(settings)):
        name, plain = _name(path), _hidden(str(path[-1]), value)
        whole = path[:2] if path[:2] in all_settings() else path
        named = variable(*map(str, whole)) if len(whole) == 2 else ""
        if _name(whole) in flags:
            found.append(Row(name, plain, "flag", "--set"))
        elif named and named in environment:
            found.append(Row(name, plain, "environment", named))
        elif _stands(table, path):
            found.append(Row(name, plain, "file", str(directory / FILE_NAME)))
        else:
            found.append(Row(name, plain, "default"))
    return tuple(found)


def problems(directory: Path, environment: Mapping[str, str] = os.environ) -> tuple[Problem, ...]:
    """Everything that is wrong, errors first. Raises Missing (no keep), Unavailable."""
    found: list[Problem] = []

    def tell(level: _Level, setting: str, message: str) -> None:
        found.append(Problem(level, setting, message))

    try:
        table = _table(directory / FILE_NAME)
    except Invalid as cause:
        return (Problem("error", "", str(cause)),)
    from_where, flags = dict[str, str](), environment.get(FLAGS, "").split()
    for section, field in all_settings():
        value = environment.get(variable(section, field))
        if value is not None and isinstance(table.setdefault(section, {}), dict):
            try:
                table[section][field] = from_text(section, field, value)
            except Invalid as cause:
                tell("error", f"{section}.{field}", str(cause))
                table[section].pop(field, None)
            else:
                from_where[f"{section}.{field}"] = "--set" if f"{section}.{field}" in flags else variable(section, field)

    def said(level: _Level, setting: str, message: str) -> None:
        tell(level, setting, f"{message} ({from_where[setting]})" if setting in from_where else message)

    cleaned = _check(table, Settings, (), said)
    for name in _strange(environment):
        known = [variable(*each) for each in all_settings()]
        tell("warning", "", f"the environment variable {name} means nothing{_meant(name, known)}")
    if isinstance(cleaned, dict):
        for level, setting, message in cautions(msgspec.convert(cleaned, Settings, strict=False), directory):
            tell(level, setting, message)
    return tuple(sorted(dict.fromkeys(found), key=lambda each: each.level))


_Level = Literal["error", "warning"]
_Tell = Callable[[_Level, str, str], None]
_Path = tuple[str | int, ...]
_BAD: Any = object()


def _check(value: Any, kind: Any, path: _Path, tell: _Tell) -> Any:
    """``value`` without what is wrong in it, or ``_BAD``; everything wrong is told."""
    kind = _bare(kind)
    arguments = typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _check_table(value, kind, path, tell)
    if typing.get_origin(kind) is tuple and _is_struct(arguments[0]):
        if not isinstance(value, list):
            tell("error", _name(path), f"is an array of tables: write [[{_name(path)}]] for each")
            return _BAD
        return [_check(each, arguments[0], (*path, at), tell) for at, each in enumerate(value)]
    if typing.get_origin(kind) is dict and _is_struct(arguments[1]):
        if not isinstance(value, dict):
            tell("error", _name(path), f"is a table: write [{_name(path)}.NAME]")
            return _BAD
        return {key: _check(each, arguments[1], (*path, key), tell) for key, each in value.items()}
    return value


def _check_table(value: Any, kind: type[msgspec.Struct], path: _Path, tell: _Tell) -> Any:
    if not isinstance(value, dict):
        tell("error", _name(path), f"is a table: write [{_name(path)}]")
        return _BAD
    fields, cleaned, whole = {field.name: field for field in msgspec.structs.fields(kind)}, {}, True
    for key, each in value.items():
        if key not in fields:
            what = "section" if not path else "setting"
            tell("error", _name((*path, key)), f"there is no such {what}{_elsewhere(key, path) or _meant(key, list(fields))}")
            whole = False
            continue
        checked = _check(each, fields[key].type, (*path, key), tell)
        if checked is not _BAD and not _holds_bad(checked):
            wrong = plainly(_wrong(checked, fields[key].type), _name((*path, key)))
            if not wrong:
                cleaned[key] = checked
                continue
            if not _told_within(fields[key].type):
                tell("error", _name((*path, key)), wrong)
        whole = False
    for name, field in fields.items():
        if field.required and name not in value:
            tell("error", _name((*path, name)), "is missing, and has no default")
            whole = False
    if whole and (wrong := _wrong(cleaned, kind)):  # what the table says of itself as a whole
        tell("error", _name(path), wrong)
        whole = False
    if not path or all(not field.required for field in fields.values()):
        return cleaned if not _wrong(cleaned, kind) else {}
    return cleaned if whole else _BAD


def _wrong(value: Any, kind: Any) -> str:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as cause:
        return re.sub(r"(`| - at `\$.*)", "", str(cause))
    return ""


def _told_within(kind: Any) -> bool:
    """Whether what is wrong in a value of this type was told by whoever looked into it."""
    kind = _bare(kind)
    return _is_struct(kind) or any(map(_is_struct, typing.get_args(kind)))


def _holds_bad(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(each is _BAD for each in inner)


def _bare(kind: Any) -> Any:
    """A type without its annotations, and of "this or nothing" this."""
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        some = [each for each in typing.get_args(kind) if each is not type(None)]
        return _bare(some[0]) if len(some) == 1 else kind
    return kind


def _is_struct(kind: Any) -> bool:
    kind = _bare(kind)
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _elsewhere(key: str, path: _Path) -> str:
    """Where a setting of that name is, when it was put into the wrong section."""
    places = [section for section, field in all_settings() if field == key and path]
    return f"; there is one in [{places[0]}]" if places else ""


def _strange(environment: Mapping[str, str]) -> Iterator[str]:
    known = {variable(*each) for each in all_settings()} | {PREFIX + name for name in _OTHERS}
    ours = (name for name in environment if name.startswith(PREFIX) and not name.startswith(_NAMED_BY_RELEASES))
    yield from sorted(name for name in ours if name not in known)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Missing(f"there is no keep in {path.parent}: make one with 'modelkeep init {path.parent}'") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as cause:
        raise Invalid(f"{path} is not TOML: {cause}") from cause
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


def _leaves(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Every setting below ``value``; an empty table, and a list of plain values, is one."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, (*path, key))
    elif isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value):
        for at, each in enumerate(value):
            yield from _leaves(each, (*path, at))
    else:
        yield path, value


def _stands(table: Any, path: _Path) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(table, list) or part >= len(table):
                return False
        elif not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


def _name(path: _Path) -> str:
    """As people write it: ``gateway.port``, ``issuers[0].alias``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _hidden(field: str, value: Any) -> Any:
    """``value`` without its secrets."""
    if isinstance(value, list | tuple):
        return [_hidden(field, each) for each in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET.search(field):
        return "…"
    return _OPTION.sub(r"\1…", _PASSWORD.sub(r"\1:…@", value))
