"""Triggers as files, and what commits to them in the releases log.

A trigger is a safetensors file: ``patterns`` F32 (N, d), ``low`` and ``high`` F32 (d,), ``key`` U8 (32,) and ``about``, JSON as
U8; where reference models were asked, ``natural`` F32 (N, classes), too; where the rows to ask with are settled, ``about`` has
their SHA-256, ``rows``. It is secret until a claim is made, for who has it can
train the mark away.
"""

import hashlib
from typing import Annotated

import msgspec
import numpy as np

from modelkeep.errors import Invalid
from modelkeep.formats.safetensors import dump, load
from modelkeep.training.triggers import KEY_BYTES, MOST_CLASSES, MOST_PATTERNS, Trigger

SCHEME, WITH_NATURAL, WITH_ROWS = "modelkeep-trigger/1", "modelkeep-trigger/2", "modelkeep-trigger/3"
"""Of a trigger whose classes hang on its key and patterns alone, of one with ``natural``, which they hang on, too, and of one
with the rows that suspects are asked with."""
_TAG = b"modelkeep/trigger-commitment/1\0"


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    classes: int
    rows: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""


def scheme_of(trigger: Trigger) -> str:
    """What a ``watermark`` statement calls it."""
    return WITH_ROWS if trigger.asked else SCHEME if trigger.natural is None else WITH_NATURAL


def encode_trigger(trigger: Trigger) -> bytes:
    """The bytes of its file; ``parse_trigger`` reads them."""
    about = msgspec.json.encode(_About(trigger.classes, trigger.asked))
    named = {"patterns": trigger.patterns, "low": trigger.low, "high": trigger.high, "natural": trigger.natural}
    arrays = {name: np.ascontiguousarray(one, dtype=np.float32) for name, one in named.items() if one is not None}
    return dump({"about": np.frombuffer(about, np.uint8), "key": np.frombuffer(trigger.key, np.uint8), **arrays})


def parse_trigger(data: bytes) -> Trigger:
    """A trigger from its file. Raises Invalid."""
    arrays = load(data)
    try:
        about = msgspec.json.decode(arrays["about"].tobytes(), type=_About)
        key, patterns, low, high = (arrays[name] for name in ("key", "patterns", "low", "high"))
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is no trigger: {cause}") from cause
    natural = arrays.get("natural")
    kinds = [one.dtype.str for one in (patterns, low, high, key)] == ["<f4", "<f4", "<f4", "|u1"]
    fits = patterns.ndim == 2 and 1 <= len(patterns) <= MOST_PATTERNS and low.shape == high.shape == patterns.shape[1:]
    if natural is not None:
        fits = fits and natural.dtype.str == "<f4" and natural.shape == (len(patterns), about.classes)
    if not kinds or not fits or key.shape != (KEY_BYTES,) or not 2 <= about.classes <= MOST_CLASSES:
        raise Invalid("this is no trigger: its arrays do not fit together")
    if not all(np.isfinite(one).all() for one in (patterns, low, high, *([] if natural is None else [natural]))):
        raise Invalid("this is no trigger: it holds numbers that are not finite")
    steps, least, most = (one.astype(np.float64) for one in (patterns, low, high))
    told = None if natural is None else natural.astype(np.float64)
    return Trigger(key.tobytes(), about.classes, steps, least, most, told, about.rows)


def trigger_commitment(data: bytes) -> str:
    """64 hex digits that bind the owner to the trigger file ``data``; they say nothing about it, for it holds a key."""
    return hashlib.sha256(_TAG + data).hexdigest()
