"""The second factors of an account: a time-based code, recovery codes, passkeys.

One record for each account. The secret of the codes is wrapped under ``second-factor``, a key family that control holds and no
gateway does; recovery codes are kept as SHA-256 (each has 80 random bits); of a passkey only the public key is kept. A time
step and a recovery code count once: using one replaces the record with compare-and-set, so of two processes one is refused.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence

import msgspec

from modelkeep.access.totp import SECRET_SIZE, matching_step
from modelkeep.core.ports import Change, Entropy, Record, Wrapper, WrappingKeys
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.crypto.wrap import join_wrapped, split_wrapped
from modelkeep.errors import Invalid, Missing, NotTrusted

FACTOR = "factor"
"""Record kind; the key is the account's name."""

RECOVERY_CODES = 10
MAX_PASSKEYS = 10
OTP, RECOVERY, PASSKEY = "otp", "recovery", "passkey"
"""Kinds of second factors."""
AMR = {OTP: ("otp",), RECOVERY: ("otp",), PASSKEY: ("hwk", "user")}
"""What a session token says was used (RFC 8176, section 2)."""

_WRAPPED = 32  # bytes that the key family wraps; the first SECRET_SIZE of them are the secret
_CODE = re.compile(r"[0-9]{6}\Z")
_RECOVERY = re.compile(r"[A-Z2-7]{16}\Z")


class Passkey(msgspec.Struct, frozen=True, kw_only=True):
    """A registered passkey. ``id``: credential id; ``public``: COSE key; ``signed``: its signature counter; ``created``: Unix
    seconds; ``label``: what its owner calls it."""

    id: bytes
    public: bytes
    signed: int
    created: int
    label: str = ""


class Factors(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept. ``secret``: of codes, wrapped, empty = none; ``pending``: one that counts once a code of it was given;
    ``last_step``: the latest time step that was used; ``recovery``: SHA-256 of the unused codes, hex."""

    secret: bytes = b""
    pending: bytes = b""
    last_step: int = -1
    recovery: tuple[str, ...] = ()
    passkeys: tuple[Passkey, ...] = ()

    def __repr__(self) -> str:
        return f"Factors(codes={bool(self.secret)}, {len(self.recovery)} recovery codes, {len(self.passkeys)} passkeys)"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of factors that can be used now."""
        otp = (OTP,) if self.secret else ()
        return otp + ((RECOVERY,) if self.recovery else ()) + ((PASSKEY,) if self.passkeys else ())


NONE = Factors()


def parse_factors(record: Record) -> Factors:
    """Decode a factor record. Raises NotTrusted (damaged)."""
    return parse_record(record, Factors, f"{record.key}'s second factors", "reset them with 'modelkeep mfa reset'")


def write_factors(account: str, factors: Factors, revision: int) -> Change:
    """The change that keeps ``factors``, if the record still has ``revision`` (0 = there is none)."""
    return Change(FACTOR, account, to_json(factors), revision)


# -- enrolment --


def begin_codes(kept: Factors, account: str, *, keys: WrappingKeys, entropy: Entropy) -> tuple[bytes, Factors]:
    """A fresh secret for codes, and what to keep: until a code of it was given the old one counts. Raises Denied,
    Unavailable."""
    drawn, wrapper = entropy.token(_WRAPPED), keys.wrapper()
    wrapped = join_wrapped(wrapper.key_id, wrapper.wrap(drawn, _context(account)))
    return drawn[:SECRET_SIZE], msgspec.structs.replace(kept, pending=wrapped)


def confirm_codes(
    kept: Factors, account: str, code: str, now: int, *, keys: WrappingKeys, entropy: Entropy
) -> tuple[tuple[str, ...], Factors]:
    """Recovery codes to hand to the owner, and what to keep. Raises Invalid (no secret waits, or the code is not of now)."""
    if not kept.pending:
        raise Invalid("no enrolment waits for its code: begin one with 'modelkeep mfa enrol'")
    step = matching_step(_opened(kept.pending, account, keys)[:SECRET_SIZE], normalised(code), now)
    if step is None:
        raise Invalid("this is not the code of now: check the clock of the device, and give the next code")
    codes = tuple(recovery_code(entropy) for _ in range(RECOVERY_CODES))
    hashed = tuple(hash_recovery(code) for code in codes)
    return codes, msgspec.structs.replace(kept, secret=kept.pending, pending=b"", last_step=step, recovery=hashed)


def recovery_code(entropy: Entropy) -> str:
    """Sixteen characters of base 32, 80 bits, in groups of four."""
    text = base64.b32encode(entropy.token(10)).decode()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def hash_recovery(code: str) -> str:
    """What is kept of a recovery code. A plain hash is enough for 80 random bits."""
    return hashlib.sha256(b"modelkeep/recovery/1\0" + normalised(code).encode()).hexdigest()


# -- use --


def use_code(kept: Factors, account: str, given: str, now: int, keys: WrappingKeys) -> tuple[str, Factors] | None:
    """The kind of factor that ``given`` is, and what to keep once it was used; None when it is no good (any more).

    ``given``: a code of six digits, or a recovery code. A time step that was used, and any before it, is no good again (RFC
    6238, section 5.2). Raises NotTrusted (the secret does not open), Denied, Unavailable.
    """
    text = normalised(given)
    if _CODE.match(text) and kept.secret:
        step = matching_step(secret_of(kept, account, keys), text, now)
        if step is None or step <= kept.last_step:
            return None
        return OTP, msgspec.structs.replace(kept, last_step=step)
    if _RECOVERY.match(text):
        mine = hash_recovery(text)
        left = tuple(each for each in kept.recovery if not hmac.compare_digest(each, mine))
        if len(left) < len(kept.recovery):
            return RECOVERY, msgspec.structs.replace(kept, recovery=left)
    return None


def normalised(given: str) -> str:
    """A code without the spaces and hyphens that people and apps put into it."""
    return re.sub(r"[\s-]", "", given[:64]).upper()


def secret_of(kept: Factors, account: str, keys: WrappingKeys) -> bytes:
    """The secret of an account's codes. Raises NotTrusted (another keep's, or altered), Denied, Missing, Unavailable."""
    return _opened(kept.secret, account, keys)[:SECRET_SIZE]


# -- passkeys --


def add_passkey(kept: Factors, passkey: Passkey) -> Factors:
    """What to keep with one passkey more. Raises Invalid (there are too many, or this one is known)."""
    if len(kept.passkeys) >= MAX_PASSKEYS or any(known.id == passkey.id for known in kept.passkeys):
        raise Invalid(f"this passkey is registered already, or there are {MAX_PASSKEYS}: have them reset first")
    return msgspec.structs.replace(kept, passkeys=(*kept.passkeys, passkey))


def passkey_at(kept: Factors, credential: bytes) -> Passkey:
    """A registered passkey. Raises Missing."""
    for known in kept.passkeys:
        if hmac.compare_digest(known.id, credential):
            return known
    raise Missing("this passkey is not registered for the account")


def passkey_used(kept: Factors, used: Passkey, signed: int) -> Factors:
    """What to keep once ``used`` signed with the counter ``signed``."""
    again = msgspec.structs.replace(used, signed=signed)
    return msgspec.structs.replace(kept, passkeys=tuple(again if each.id == used.id else each for each in kept.passkeys))


# -- the wrapping key's rotation --


def factor_key_ids(record: Record) -> tuple[str, ...]:
    """Which keys the secrets in a record are wrapped under. Raises NotTrusted."""
    kept = parse_factors(record)
    return tuple(split_wrapped(secret, _what(record.key))[0] for secret in (kept.secret, kept.pending) if secret)


def rewrapped_factor(record: Record, keys: WrappingKeys, wrapper: Wrapper) -> bytes:
    """The record's body with the same secrets wrapped by ``wrapper``. Raises NotTrusted, Denied, Missing, Unavailable."""

    def again(secret: bytes) -> bytes:
        if not secret:
            return b""
        drawn = _opened(secret, record.key, keys)
        return join_wrapped(wrapper.key_id, wrapper.wrap(drawn, _context(record.key)))

    kept = parse_factors(record)
    return to_json(msgspec.structs.replace(kept, secret=again(kept.secret), pending=again(kept.pending)))


def _opened(secret: bytes, account: str, keys: WrappingKeys) -> bytes:
    key_id, wrapped = split_wrapped(secret, _what(account))
    found = keys.opens(key_id)
    if found is None:
        raise NotTrusted(f"{_what(account)} is wrapped under {key_id[:80]}, which this keep does not know")
    return found.unwrap(wrapped, _context(account))


def _what(account: str) -> str:
    return f"{account}'s second factor"


def _context(account: str) -> bytes:
    return b"modelkeep/second-factor/1\0" + account.encode()


def labels(passkeys: Sequence[Passkey]) -> tuple[str, ...]:
    """What their owner calls them."""
    return tuple(each.label or "passkey" for each in passkeys)
