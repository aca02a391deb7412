"""What a family of wrapping keys holds: the wrapped keys in the records, each with the key that it is wrapped under.

``model-kek`` wraps the data key of every sealed body, ``audit-subject`` the key of every account's audit bodies and
the salt of every data set, ``second-factor`` the secret of every account's one-time codes, ``data-kek`` the data key of every
sealed data set.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from modelkeep.access.factors import FACTOR, factor_key_ids, rewrapped_factor
from modelkeep.container.recipients import Binding, KmsRecipient, KmsStanza, Opener, encode_recipients, parse_recipients, unlock
from modelkeep.core.ports import Record, Records, Wrapper, WrappingKeys
from modelkeep.core.values import Digest
from modelkeep.custody.datasets import DATA_RECIPIENTS
from modelkeep.custody.releases import RECIPIENTS, RELEASE, Release
from modelkeep.custody.salting import DATA_SALT, rewrapped_salt, salt_key_id
from modelkeep.errors import Conflict
from modelkeep.serving.bodies import SUBJECT_KEY, rewrapped_subject, subject_key_id
from modelkeep.workflows.datasets import header_of
from modelkeep.workflows.registry import Registry


class Held(NamedTuple):
    """A record with something wrapped, and the ids of the keys that wrap it."""

    record: Record
    key_ids: tuple[str, ...]


class Holdings(Protocol):
    """All that one family's keys wrap in this keep."""

    @property
    def records(self) -> Records:
        """Where the wrapped keys lie."""
        ...

    def scan(self) -> list[Held]:
        """Everything, by record key. Raises NotTrusted (a record is malformed), Unavailable."""
        ...

    def again(self, record: Record, wrapper: Wrapper) -> bytes:
        """The record's body with the same key, wrapped by ``wrapper`` alone.

        Raises NotTrusted, Denied, Conflict (it belongs to nothing), Unavailable.
        """
        ...


class Bodies:
    """The data keys of sealed bodies, in their recipient blocks. Recipients of other kinds stay."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._headers: dict[Digest, bytes] = {}

    @property
    def records(self) -> Records:
        """The registry's."""
        return self._registry.records

    def scan(self) -> list[Held]:
        """Raises NotTrusted, Unavailable."""
        return [_held(record) for record in self.records.scan(RECIPIENTS)]

    def again(self, record: Record, wrapper: Wrapper) -> bytes:
        """Raises NotTrusted (altered, or no key at hand opens it), Denied, Conflict (of no release), Unavailable."""
        header_hash = self._header_hash(Digest(record.key))
        return _wrapped_again(record, header_hash, self._registry.openers, wrapper)

    def _header_hash(self, sealed: Digest) -> bytes:
        if sealed not in self._headers:
            self._headers = header_hashes(self._registry)
        try:
            return self._headers[sealed]
        except KeyError:
            raise Conflict(f"the recipients of {sealed} belong to no release in the log or under way: settle first") from None


class DataBodies:
    """The data keys of sealed data sets. ``openers``: who opens them."""

    def __init__(self, registry: Registry, openers: Sequence[Opener]) -> None:
        self._registry, self._openers = registry, openers

    @property
    def records(self) -> Records:
        """The registry's."""
        return self._registry.records

    def scan(self) -> list[Held]:
        """Raises NotTrusted, Unavailable."""
        return [_held(record) for record in self.records.scan(DATA_RECIPIENTS)]

    def again(self, record: Record, wrapper: Wrapper) -> bytes:
        """Raises NotTrusted, Denied, Conflict (of no data set), Unavailable."""
        header_hash = header_of(self._registry)(Digest(record.key))
        return _wrapped_again(record, header_hash, self._openers, wrapper)


class Subjects:
    """The keys of accounts' audit bodies, and the salts of data sets."""

    def __init__(self, records: Records, keys: WrappingKeys) -> None:
        self._records, self._keys = records, keys

    @property
    def records(self) -> Records:
        """The records given."""
        return self._records

    def scan(self) -> list[Held]:
        """Raises NotTrusted, Unavailable."""
        keys = [Held(record, (subject_key_id(record),)) for record in self._records.scan(SUBJECT_KEY)]
        return keys + [Held(record, (salt_key_id(record),)) for record in self._records.scan(DATA_SALT)]

    def again(self, record: Record, wrapper: Wrapper) -> bytes:
        """Raises NotTrusted, Denied, Missing, Unavailable."""
        again = rewrapped_salt if record.kind == DATA_SALT else rewrapped_subject
        return again(record, self._keys, wrapper)


class SecondFactors:
    """The secrets of accounts' one-time codes."""

    def __init__(self, records: Records, keys: WrappingKeys) -> None:
        self._records, self._keys = records, keys

    @property
    def records(self) -> Records:
        """The records given."""
        return self._records

    def scan(self) -> list[Held]:
        """Raises NotTrusted, Unavailable."""
        found = [Held(record, factor_key_ids(record)) for record in self._records.scan(FACTOR)]
        return [held for held in found if held.key_ids]

    def again(self, record: Record, wrapper: Wrapper) -> bytes:
        """Raises NotTrusted, Denied, Missing, Unavailable."""
        return rewrapped_factor(record, self._keys, wrapper)


def _held(record: Record) -> Held:
    stanzas = parse_recipients(record.body or b"").stanzas
    return Held(record, tuple(each.key_id for each in stanzas if isinstance(each, KmsStanza)))


def _wrapped_again(record: Record, header_hash: bytes, openers: Sequence[Opener], wrapper: Wrapper) -> bytes:
    """A recipient block with the same data key, wrapped by ``wrapper``; recipients of other kinds stay."""
    block = record.body or b""
    parsed = parse_recipients(block)
    dek = unlock(block, header_hash, openers, purpose=parsed.purpose)
    binding = Binding(header_hash, parsed.model_digest, parsed.purpose)
    kept = [stanza for stanza in parsed.stanzas if not isinstance(stanza, KmsStanza)]
    return encode_recipients([KmsRecipient(wrapper).stanza(dek, binding.context()), *kept], dek, binding)


def header_hashes(registry: Registry) -> dict[Digest, bytes]:
    """Header hash by sealed digest, of every body that the log or a release record names.

    A record's word is good enough: a data key is bound to its header, so a wrong one opens nothing. Raises NotTrusted.
    """
    bodies = list(registry.refresh().bodies().values())
    for record in registry.records.scan(RELEASE):
        bodies.extend(Release.parse(record.body or b"").bodies)
    return {body.sealed: bytes.fromhex(body.header) for body in bodies}


def wrapped_under(holdings: Holdings) -> dict[str, int]:
    """How many things are wrapped under each key: a key may be destroyed only when none is. Raises NotTrusted, Unavailable."""
    return dict(Counter(key_id for held in holdings.scan() for key_id in held.key_ids))
