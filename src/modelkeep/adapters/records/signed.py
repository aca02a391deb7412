"""``Records`` of which some kinds are signed, so that whoever can only write the database cannot make an administrator.

A body of a signed kind is stored as ``signature(64) ‖ body``; the Ed25519 signature is over a domain tag, kind, key and body.
It does not show that a record is the *newest* one: docs/THREAT-MODEL.md says what putting an old record back gains.
"""

from collections.abc import Callable, Collection, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from modelkeep.core.ports import Change, Record, Records
from modelkeep.errors import Conflict, Missing, NotTrusted

_TAG = b"modelkeep/record/1"
_SIGNATURE = 64
_RETRIES = 16


class SignedRecords:
    """A layer over any ``Records``. Kinds other than ``kinds`` pass through as they are."""

    def __init__(
        self,
        inner: Records,
        kinds: Collection[str],
        public: Callable[[], Sequence[bytes]],
        signer: Callable[[], Ed25519PrivateKey],
    ) -> None:
        """``public``: the 32-byte keys of which one must have signed, asked at every look because a rotation may change them;
        ``signer``: asked only when a record of a signed kind is written."""
        self._inner = inner
        self._kinds = frozenset(kinds)
        self._public = public
        self._signer = signer

    def get(self, kind: str, key: str) -> Record:
        """The current record. Raises Missing, NotTrusted (not signed by this keep), Unavailable."""
        return self._checked(self._inner.get(kind, key))

    def scan(self, kind: str, prefix: str = "") -> list[Record]:
        """Current records of a kind, ordered by key. Raises NotTrusted (one is not signed by this keep), Unavailable."""
        return [self._checked(record) for record in self._inner.scan(kind, prefix)]

    def commit(self, changes: Sequence[Change]) -> int:
        """Apply all or none, signing what needs it. Raises Conflict, Sealed (the signing key is not open), Unavailable."""
        return self._inner.commit([self._signed(change) for change in changes])

    def revision(self) -> int:
        """The latest global revision. Raises Unavailable."""
        return self._inner.revision()

    def since(self, revision: int) -> list[Record]:
        """Records changed after ``revision``, oldest change first. Raises NotTrusted, Unavailable."""
        return [self._checked(record) for record in self._inner.since(revision)]

    def prune(self, kinds: Collection[str]) -> None:
        """Drop what is left of deleted records of ``kinds``. Raises Unavailable."""
        self._inner.prune(kinds)

    def expunge(self, kinds: Collection[str]) -> None:
        """Remove what is left of deleted records of ``kinds``. Raises Unavailable."""
        self._inner.expunge(kinds)

    def close(self) -> None:
        """Let go of the store; idempotent."""
        self._inner.close()

    def _signed(self, change: Change) -> Change:
        if change.kind not in self._kinds or change.body is None:
            return change
        signature = self._signer().sign(_message(change.kind, change.key, change.body))
        return change._replace(body=signature + change.body)

    def _checked(self, record: Record) -> Record:
        if record.kind not in self._kinds or record.body is None:
            return record
        signature, body = record.body[:_SIGNATURE], record.body[_SIGNATURE:]
        message = _message(record.kind, record.key, body)
        for public in self._public():
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
            except InvalidSignature:
                continue
            return record._replace(body=body)
        raise NotTrusted(
            f"the {record.kind} record {record.key[:64]!r} was not written by this keep: restore the records from a backup"
        )

    def sign_again(self) -> int:
        """Sign every record of a signed kind with the key of now; how many. Rerun to resume.

        Raises NotTrusted (one was not written by this keep), Conflict (one changes too fast), Sealed, Unavailable.
        """
        found = [record for kind in sorted(self._kinds) for record in self.scan(kind)]
        for record in found:
            self._sign_one_again(record)
        return len(found)

    def _sign_one_again(self, record: Record) -> None:
        for _ in range(_RETRIES):
            try:
                self.commit([Change(record.kind, record.key, record.body, record.revision)])
                return
            except Conflict:  # refresh tokens change with every use
                try:
                    record = self.get(record.kind, record.key)
                except Missing:
                    return
        raise Conflict(f"the {record.kind} record {record.key[:64]!r} changes too fast: run this again")


def _message(kind: str, key: str, body: bytes) -> bytes:
    return b"\0".join((_TAG, kind.encode(), key.encode(), body))
