"""Rewrap: after a rotation, wrap every body's data key under the new key. Kilobytes change; bodies, signatures and log stay.

Rewrapping does not revoke anyone who held a data key: that takes a new sealing.
"""

from collections import Counter

import msgspec

from modelkeep.container.recipients import Binding, KmsRecipient, KmsStanza, encode_recipients, parse_recipients, unlock
from modelkeep.core.ports import Change, Record
from modelkeep.core.values import Digest
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.errors import Conflict
from modelkeep.workflows.registry import Desk, Registry


class Rewrapped(msgspec.Struct, frozen=True):
    """How many bodies were wrapped anew, and how many were wrapped under the primary already."""

    changed: int
    current: int


def rewrap(desk: Desk) -> Rewrapped:
    """Wrap the data key of every body under ``desk.wrapper`` alone (other kinds of recipient stay). Rerun to resume.

    Raises NotTrusted (a block was altered, or no key at hand opens it), Denied, Conflict (it changed meanwhile), Unavailable.
    """
    headers = _headers(desk.registry)
    changed = current = 0
    for record in desk.registry.records.scan(RECIPIENTS):
        stanzas = parse_recipients(record.body or b"").stanzas
        keys = [stanza.key_id for stanza in stanzas if isinstance(stanza, KmsStanza)]
        if keys == [desk.wrapper.key_id]:
            current += 1
        elif record.key in headers:
            block = _rewrapped(desk, record, headers[Digest(record.key)])
            desk.registry.records.commit([Change(RECIPIENTS, record.key, block, record.revision)])
            changed += 1
        else:
            raise Conflict(f"the recipients of {record.key} belong to no release in the log: settle first")
    return Rewrapped(changed, current)


def wrapped_under(registry: Registry) -> dict[str, int]:
    """How many bodies are wrapped under each key: a key may be destroyed only when none is. Raises NotTrusted, Unavailable."""
    found: Counter[str] = Counter()
    for record in registry.records.scan(RECIPIENTS):
        stanzas = parse_recipients(record.body or b"").stanzas
        found.update(stanza.key_id for stanza in stanzas if isinstance(stanza, KmsStanza))
    return dict(found)


def _headers(registry: Registry) -> dict[Digest, bytes]:
    """Header hash by sealed digest, of every body that the log names."""
    evidence = registry.refresh().releases()
    bodies = (body for each in evidence for body in (each.body, each.profile_body) if body is not None)
    return {body.sealed: bytes.fromhex(body.header) for body in bodies}


def _rewrapped(desk: Desk, record: Record, header_hash: bytes) -> bytes:
    block = record.body or b""
    parsed = parse_recipients(block)
    openers = [KmsRecipient(wrapper) for wrapper in desk.registry.wrappers]
    dek = unlock(block, header_hash, openers, purpose=parsed.purpose)
    binding = Binding(header_hash, parsed.model_digest, parsed.purpose)
    kept = [stanza for stanza in parsed.stanzas if not isinstance(stanza, KmsStanza)]
    return encode_recipients([KmsRecipient(desk.wrapper).stanza(dek, binding.context()), *kept], dek, binding)
