"""Bodies of inference requests and explanations, damaged as bytes and as JSON, for a whole gateway."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy

_VALUES = (
    None, True, "", "x", "\u0000", "9" * 400, 0, -1, 1.5, 1e308, 1e-320, 2**31, 2**63, 2**64, -(2**63) - 1, [], {}, [[]],
    [None], [1, [2]], {"a": 1}, "FP32", "FP16", "BYTES", "BOOL", "INT64", [1, 6], [6, 1], [0, 6], [-1, 6],
    [2**40, 6], ["1"], "\ud800",
)  # fmt: skip
_TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"01", b"0x1", b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b'"',
    b"{", b"}", b"[", b"]", b",", b":", b"null", b'"name":"X",', b'"inputs":[],', b"[" * 300, b" " * 100, b"\0",
)  # fmt: skip


def valid(rng: random.Random, rows: list[list[float]], name: str = "X") -> dict:
    """A request for some of ``rows``, with some of what it may have; it may be valid."""
    nested = rng.sample(rows, rng.choice((1, 1, 1, 2, 5)))
    data = [value for row in nested for value in row] if rng.random() < 0.7 else [list(row) for row in nested]
    body: dict = {"inputs": [{"name": name, "datatype": "FP32", "shape": [len(nested), len(nested[0])], "data": data}]}
    if rng.random() < 0.2:
        body["id"] = rng.choice(("", "a", "é" * 10))
    if rng.random() < 0.2:
        body["outputs"] = rng.sample([{"name": "label"}, {"name": "probabilities"}, {"name": "nothing"}], rng.randrange(3))
    if rng.random() < 0.2:
        body["parameters"] = deepcopy(rng.choice(({}, {"target": 1}, {"samples": 3}, {"target": rng.choice(_VALUES)})))
    return body


def places(value: object) -> Iterator[tuple[list | dict, int | str]]:
    """Every place in a JSON value where another could stand."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key  # type: ignore[misc]
        yield from places(inner)


def damaged(rng: random.Random, rows: list[list[float]]) -> bytes:
    """One body: whole, with other values in it, or with other bytes in it."""
    body = valid(rng, rows)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        holder, key = rng.choice(list(places(body)))
        if isinstance(holder, dict) and rng.random() < 0.3:
            holder[rng.choice(("name", "data", "shape", "extra", ""))] = holder.pop(key)
        else:
            holder[key] = deepcopy(rng.choice(_VALUES))
    data = bytearray(json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        at, size = rng.randrange(len(data) + 1), rng.choice((0, 1, 1, 5, 50))
        data[at : at + size] = rng.choice((b"", rng.choice(_TOKENS), data[at : at + size] * 2, rng.randbytes(3)))
    return bytes(data)
