"""Wrapping keys by provider: microseconds to wrap and to unwrap one data key, beside what each provider's bare call costs.

``python -m benchmarks keys``. SoftHSM2 is the real thing; Vault and AWS are the stand-ins of the tests on this machine, so
their rows say what the client and loopback HTTP cost, and nothing of a real server's or network's time.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import Row, report
from modelkeep.core.ports import Wrapper
from modelkeep.crypto.wrap import unwrap_key, wrap_key

TESTS = Path(__file__).parent.parent / "tests"
ROUNDS = 5
KEY, CONTEXT = bytes(range(32)), b"context of one body"


def run(args: list[str]) -> None:
    """No arguments."""
    sys.path[:0] = [str(TESTS), str(TESTS / "ports")]
    rows = [*_memory(), *_token()]
    for name, bare in (("ring", "bare crypto/wrap"), ("pkcs11", "bare AES-GCM in SoftHSM2"), ("vault", ""), ("aws", "")):
        rows += _provider(name, {str(row["case"]): row for row in rows}, bare)
    report(f"Wrapping keys: microseconds a key, median of {ROUNDS}", rows)


def _micros(work: Callable[[], object], times: int) -> float:
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(times):
            work()
        rounds.append((time.perf_counter() - begun) / times * 1e6)
    return statistics.median(rounds)


def _row(case: str, wrap: float, unwrap: float) -> Row:
    return {"bench": "keys", "case": case, "wrap_us": round(wrap, 1), "unwrap_us": round(unwrap, 1)}


def _memory() -> Iterator[Row]:
    kek = os.urandom(32)
    wrapped = wrap_key(kek, KEY, CONTEXT)
    yield _row(
        "bare crypto/wrap",
        _micros(lambda: wrap_key(kek, KEY, CONTEXT), 2000),
        _micros(lambda: unwrap_key(kek, wrapped, CONTEXT), 2000),
    )


def _token() -> Iterator[Row]:
    """SoftHSM2 without modelkeep: AES-GCM as the adapter uses it, and AES key wrap (RFC 3394) of a key object."""
    import pkcs11
    from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag
    from softhsm import MODULE, Token

    token = Token()
    session = pkcs11.lib(MODULE).get_token(token_label=token.label).open(rw=True, user_pin=token.pin)
    key = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT)
    params = GCMParams(bytes(12), bytes(64), 128)
    sealed = key.encrypt(KEY, mechanism=Mechanism.AES_GCM, mechanism_param=params)
    yield _row(
        "bare AES-GCM in SoftHSM2",
        _micros(lambda: key.encrypt(KEY, mechanism=Mechanism.AES_GCM, mechanism_param=params), 300),
        _micros(lambda: key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=params), 300),
    )
    wrapping = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP)
    inner = session.generate_key(KeyType.AES, 256, template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False})
    wrapped = wrapping.wrap_key(inner, mechanism=Mechanism.AES_KEY_WRAP)
    kind = (pkcs11.ObjectClass.SECRET_KEY, KeyType.AES, wrapped)
    yield _row(
        "bare AES key wrap in SoftHSM2",
        _micros(lambda: wrapping.wrap_key(inner, mechanism=Mechanism.AES_KEY_WRAP), 300),
        _micros(lambda: wrapping.unwrap_key(*kind, mechanism=Mechanism.AES_KEY_WRAP), 100),
    )
    session.close()


def _provider(name: str, known: dict[str, Row], bare: str) -> Iterator[Row]:
    from key_providers import PROVIDERS

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelkeep-bench-")))
        provider = PROVIDERS[name](folder, stack.enter_context(pytest.MonkeyPatch.context()))
        stack.callback(provider.close)
        provider.begin()
        wrapper: Wrapper = provider.open().create()
        wrapped, times = wrapper.wrap(KEY, CONTEXT), 500 if bare else 40
        wrap = _micros(lambda: wrapper.wrap(KEY, CONTEXT), times)
        unwrap = _micros(lambda: wrapper.unwrap(wrapped, CONTEXT), times)
    row = _row(f"provider {name}" + ("" if bare else ", stand-in"), wrap, unwrap)
    if bare:
        ratios = [float(str(row[column])) / float(str(known[bare][column])) for column in ("wrap_us", "unwrap_us")]
        row |= {"against": bare, "ratio": ", ".join(f"{ratio:.1f}" for ratio in ratios)}
    yield row
