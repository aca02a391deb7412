"""Which packages an environment has, from what people keep: lock files, pinned requirements, and the report of ``pip inspect``.

What cannot be looked up in a database of published versions (unpinned, editable, from a repository or an address) is told
apart, with the reason: whoever relies on a list must know what it leaves out. Environment markers are not evaluated: what one
platform would not install is looked up all the same. Sources: PEP 508, 610 and 751; the lock files of uv, Poetry and Pipenv.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from packaging.requirements import InvalidRequirement, Requirement

from modelkeep.core.values import Digest, digest_of
from modelkeep.custody.advisories import canonical_name, parse_version
from modelkeep.errors import Invalid, TooLarge

MAX_LOCK, MAX_PACKAGES, MAX_LINE = 16 << 20, 20_000, 4_000
"""Bytes of a lock file, packages of all of them together, characters of a requirement."""
_OPTION = re.compile(r"-{1,2}[A-Za-z]")
_HASHES = re.compile(r"\s--(hash|config-settings|global-option)[=\s].*")
_COMMENT = re.compile(r"(^|\s)#.*")
_INDEXES = ("-i", "--index-url", "--extra-index-url", "--no-index", "-f", "--find-links", "--trusted-host")
_HARMLESS = (*_INDEXES, "--no-binary", "--only-binary", "--prefer-binary", "--require-hashes", "--pre", "--use-feature")
"""Options of pip that install nothing."""
_ELSEWHERE = {"archive": "an address", "url": "an address"}
_ELSEWHERE |= dict.fromkeys(("vcs", "git", "hg", "svn", "bzr"), "a repository")
_ELSEWHERE |= dict.fromkeys(("directory", "editable", "virtual"), "a folder") | dict.fromkeys(("path", "file"), "a file")
_UNKNOWN = "somewhere that is not known here"


class Packages(msgspec.Struct, frozen=True):
    """``pins``: (normalised name, version), each once, sorted; ``beyond``: what cannot be looked up, as ``what: why``.

    ``said``: the lock of a training run, which spells names and versions its own way; None for lock files.
    """

    pins: tuple[tuple[str, str], ...]
    beyond: tuple[str, ...] = ()
    said: Digest | None = None

    @property
    def lock(self) -> Digest:
        """The SHA-256 of the lines ``name==version``, sorted, as training-run statements have it."""
        return self.said or _lock(self.pins)


def _lock(pins: Iterable[tuple[str, str]]) -> Digest:
    return digest_of("".join(sorted(f"{name}=={version}\n" for name, version in pins)).encode())


def installed(packages: Mapping[str, str]) -> Packages:
    """The packages of a training run. What is no package of a version becomes ``beyond``."""
    return msgspec.structs.replace(_collect(packages.items()), said=_lock(packages.items()))


def parse_locks(files: Mapping[str, bytes]) -> Packages:
    """The packages in lock files, by file name (told in messages, and to see what ``-r`` means). Raises Invalid, TooLarge."""
    found: list[tuple[str, str] | str] = []
    for name, text in files.items():
        found += _parse(name, text, files)
        if len(found) > MAX_PACKAGES:
            raise TooLarge(f"the lock files have more than {MAX_PACKAGES:,} packages")
    if not found:
        raise Invalid("the lock files name no package")
    return _collect(found)


def _collect(found: Iterable[tuple[str, str] | str]) -> Packages:
    pins, beyond = set(), set()
    for one in found:
        if isinstance(one, str):
            beyond.add(one)
            continue
        try:
            pins.add((canonical_name(one[0]), str(parse_version(one[1]))))
        except Invalid as cause:
            beyond.add(f"{one[0][:60]!a}: {cause}")
    return Packages(tuple(sorted(pins)), tuple(sorted(beyond)))


def _parse(name: str, text: bytes, files: Mapping[str, bytes]) -> list[tuple[str, str] | str]:
    if len(text) > MAX_LOCK:
        raise TooLarge(f"{name[:80]} has {len(text):,} bytes, more than {MAX_LOCK:,}")
    try:
        words = text.decode("utf-8-sig")
        if words.lstrip().startswith("{"):
            return list(_json(json.loads(words)))
        if name.endswith((".lock", ".toml")):
            return list(_toml(tomllib.loads(words)))
        return list(_requirements(words, files))
    except (ValueError, RecursionError) as cause:  # neither UTF-8, JSON nor TOML
        raise Invalid(f"{name[:80]} cannot be read: {cause}") from cause
    except Invalid as cause:
        raise type(cause)(f"{name[:80]}: {cause}") from cause
    except (TypeError, AttributeError, KeyError) as cause:  # a table where a word should be
        raise Invalid(f"{name[:80]} has not the shape of a lock file: {cause!r:.80}") from cause


def _json(document: dict[str, Any]) -> Iterator[tuple[str, str] | str]:
    if "installed" in document:  # pip inspect
        for one in document["installed"]:
            about = one["metadata"]
            if about["name"] is None:
                yield "a distribution without a name: nobody knows what it is"
            else:
                yield _placed(about["name"], about["version"], _direct(one.get("direct_url")))
    elif "_meta" in document:  # Pipfile.lock
        for section in (value for key, value in document.items() if key != "_meta"):
            for name, one in section.items():
                version = one.get("version", "")
                yield _placed(name, version.removeprefix("==") if version.startswith("==") else "", _somewhere(one))
    else:
        raise Invalid("this JSON is neither a Pipfile.lock nor a report of 'pip inspect'")


def _toml(document: dict[str, Any]) -> Iterator[tuple[str, str] | str]:
    if "packages" in document and "lock-version" in document:  # PEP 751
        for one in document["packages"]:
            yield _placed(one["name"], one.get("version", ""), _somewhere(one))
    elif "package" in document:  # uv.lock, poetry.lock
        for one in document["package"]:
            source = one.get("source", {})
            if source.get("virtual") == "." or source.get("editable") == ".":
                continue  # the project itself, whose lock this is
            yield _placed(one["name"], one.get("version", ""), _source(source))
    else:
        raise Invalid("this TOML is neither a pylock.toml nor the lock file of uv or Poetry")


def _placed(said: Any, version: Any, where: str) -> tuple[str, str] | str:
    name = canonical_name(said)
    if where:
        return f"{name}: it comes from {where}, not from an index of published versions"
    return (name, str(version)) if version else f"{name}: no version is named"


def _somewhere(one: Mapping[str, Any]) -> str:
    return next((where for key, where in _ELSEWHERE.items() if one.get(key)), "")


def _source(source: Mapping[str, Any]) -> str:
    """Where uv or Poetry take a package from; "" = an index, which both say in words of their own, or not at all."""
    if not source or "registry" in source or source.get("type") == "legacy":
        return ""
    return _ELSEWHERE.get(source["type"], _UNKNOWN) if "type" in source else _somewhere(source) or _UNKNOWN


def _direct(url: Any) -> str:
    """Where a distribution came from when it was no index (PEP 610)."""
    if not url:
        return ""
    if url.get("dir_info", {}).get("editable"):
        return "a folder, editable"
    return "a repository" if "vcs_info" in url else "a folder" if "dir_info" in url else "an address"


def _requirements(text: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, str] | str]:
    """Requirements and constraints, as pip reads them."""
    for number, line in enumerate(text.replace("\\\n", " ").replace("\\\r\n", " ").splitlines(), 1):
        wanted = _COMMENT.sub("", line).strip()
        if len(wanted) > MAX_LINE:
            raise TooLarge(f"line {number} has more than {MAX_LINE:,} characters")
        if not wanted:
            continue
        if _OPTION.match(wanted):
            yield from _option(wanted, number, files)
        else:
            yield _requirement(_HASHES.sub("", wanted).strip(), number)


def _option(line: str, number: int, files: Mapping[str, bytes]) -> Iterator[str]:
    word, _, rest = line.replace("=", " ", 1).partition(" ")
    rest = rest.strip()
    if word in ("-r", "--requirement", "-c", "--constraint"):
        if rest.rpartition("/")[2] not in {name.rpartition("/")[2] for name in files}:
            yield f"{rest[:80]!a}: named in line {number} and not given: name it, too"
    elif word in ("-e", "--editable"):
        yield f"{rest[:80]!a}: it is editable, not from an index of published versions"
    elif word not in _HARMLESS:
        raise Invalid(f"line {number} has an option that is not known here: {word[:40]!a}")


def _requirement(line: str, number: int) -> tuple[str, str] | str:
    try:
        wanted = Requirement(line)
    except (InvalidRequirement, RecursionError) as cause:
        if "://" in line or "/" in line:
            return f"{line[:80]!a}: it comes from a file or an address, not from an index of published versions"
        raise Invalid(f"line {number} is no requirement: {line[:80]!a}") from cause
    name = canonical_name(wanted.name)
    if wanted.url:
        return f"{name}: it comes from an address, not from an index of published versions"
    pins = [each.version for each in wanted.specifier if each.operator in ("==", "===") and not each.version.endswith(".*")]
    return (name, pins[0]) if pins else f"{name}: it is not pinned to one version"
