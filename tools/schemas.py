"""Write the JSON Schema (draft 2020-12) of every predicate into docs/formats/schemas: ``python tools/schemas.py``.

They come from the structs that modelkeep itself decodes with, so they cannot say anything else; a test holds the files to them.
"""

import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from modelkeep.core.values import Digest
from modelkeep.ledger.kinds import PREDICATES, short_type
from modelkeep.ledger.predicates import Predicate

FOLDER = Path(__file__).parents[1] / "docs" / "formats" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DIGEST = "^sha256:[0-9a-f]{64}$"


def schema_of(kind: type[Predicate]) -> dict[str, Any]:
    """The schema of one predicate, with everything that it refers to."""
    (_,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    found = {struct.__name__: struct for struct in _structs(kind)}
    described = {name: _described(schema, found[name]) if name in found else schema for name, schema in components.items()}
    own = described.pop(kind.__name__)
    head = {"$schema": DIALECT, "$id": kind.TYPE, **own}
    return {**head, "$defs": dict(sorted(described.items()))} if described else head


def texts() -> dict[str, str]:
    """The text of every schema file, by its name."""
    return {
        f"{short_type(name)}.json": json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"
        for name, kind in PREDICATES.items()
    }


def _described(schema: dict[str, Any], struct: type) -> dict[str, Any]:
    """``schema`` with readable words, and with the form of digests, which their type alone does not say."""
    for field, hint in typing.get_type_hints(struct).items():
        if field in schema["properties"]:
            _mark(hint, schema["properties"][field])
    return {**schema, "description": inspect.cleandoc(struct.__doc__ or "").replace("``", "`")}


def _mark(hint: Any, schema: dict[str, Any]) -> None:
    inner = typing.get_args(hint)
    if hint is Digest:
        schema["pattern"] = DIGEST
    elif typing.get_origin(hint) is tuple:
        _mark(inner[0], schema["items"])
    elif typing.get_origin(hint) is dict:
        _mark(inner[1], schema["additionalProperties"])


def _structs(kind: Any) -> set[type]:
    """Every struct that ``kind`` holds, itself among them."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {kind}.union(*map(_structs, typing.get_type_hints(kind).values()))
    if isinstance(kind, types.GenericAlias | types.UnionType) or typing.get_origin(kind):
        return set().union(*map(_structs, typing.get_args(kind)))
    return set()


def main() -> int:
    """Write the files, and remove those of types that are gone."""
    made = texts()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
    sys.stdout.write(f"{len(made)} schemas in {FOLDER}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
