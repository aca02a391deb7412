"""Who may sign what at each index of a releases log: the trust root in hand, and the changes that the log itself announces.

A `trust` statement is signed by an identity that is trusted at its place and takes effect from the next index on. So whoever
reads the log with an older trust root follows rotations, additions, limits and removals, as a TUF client follows root metadata
(theupdateframework.github.io, specification 5.3). A compromise cannot be announced by the key that was stolen: that takes a new
trust root by hand, and what the trust root in hand says always stands before what the log says.
"""

from collections.abc import Iterator, Mapping

import msgspec

from modelkeep.core.values import Digest, Statement, digest_of
from modelkeep.crypto.dsse import Envelope, check_envelope
from modelkeep.crypto.signatures import PublicIdentity
from modelkeep.custody.trust import ANY, Rights, TrustedIdentity, TrustRoot, matches
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger.attestations import ATTESTATIONS
from modelkeep.ledger.kinds import PREDICATES, short_type
from modelkeep.ledger.predicates import Scan, Trust
from modelkeep.ledger.statements import PAYLOAD_TYPE, check_statement, encode_statement, keep_resource, predicate_of

ROTATE, ADD, LIMIT, REMOVE = "rotate", "add", "limit", "remove"
CHANGES = (ROTATE, ADD, LIMIT, REMOVE)
_JUDGED_ELSEWHERE = frozenset({Scan.TYPE, Trust.TYPE, *ATTESTATIONS})
"""Scans and attestations are about bytes and are judged with the release of these bytes; a trust statement may give no more
than its signer has."""


class Announced(msgspec.Struct, frozen=True):
    """An identity that the log brought in, the identity ``by`` which, and the log ``index`` of the statement."""

    public: PublicIdentity
    by: str
    index: int


class Signatories:
    """The identities of a trust root and their stretches of the log. Feed it every trust statement in the order of the log."""

    def __init__(self, root: TrustRoot) -> None:
        """Raises NotTrusted (one name with several keys, or one key under several names)."""
        self._roots = [root]
        self._keys: dict[str, PublicIdentity] = {}
        self._names: dict[str, PublicIdentity] = {}
        self._announced: dict[str, Announced] = {}
        self._limited: list[Announced] = []
        self._seen: set[Digest] = set()
        for trusted in root.identities:
            self._know(trusted.public)

    @property
    def root(self) -> TrustRoot:
        """The trust root in force after all that was fed in."""
        return self._roots[-1]

    @property
    def roots(self) -> tuple[TrustRoot, ...]:
        """Every trust root that the log led through, the first one in hand first."""
        return tuple(self._roots)

    @property
    def identities(self) -> Mapping[str, PublicIdentity]:
        """Every identity that ever counted, by the keyid of its Ed25519 key."""
        return self._keys

    def announced(self) -> tuple[Announced, ...]:
        """The identities that the log announced and that counted when it did, oldest first."""
        return tuple(self._announced.values())

    def limited(self) -> tuple[Announced, ...]:
        """The identities that the log gave other rights, by whom and where, oldest first."""
        return tuple(self._limited)

    def stretches(self, name: str) -> list[TrustedIdentity]:
        """What the identity ``name`` may say, one for each stretch of the log, in the order of the log; [] for a stranger."""
        return [trusted for trusted in self.root.identities if trusted.name == name]

    def at(self, name: str, index: int) -> TrustedIdentity:
        """What ``name`` may say at log index ``index``. Raises NotTrusted (nothing), Conflict (nothing: it is compromised)."""
        found = self.stretches(name)
        for trusted in found:
            if trusted.holds_at(index):
                return trusted
        if any(trusted.compromised for trusted in found):
            raise Conflict(f"the key of {name} is compromised: what it signed at log index {index} does not count")
        raise NotTrusted(f"{name} is not trusted at log index {index}")

    def check_signs(self, public: PublicIdentity, index: int) -> None:
        """Check that what ``public`` signs would count at log index ``index``. Raises NotTrusted, Conflict."""
        if self._keys.get(public.key_ids[0]) != public:
            raise NotTrusted(f"{public.name} is not an identity of this keep: the trust root does not name it")
        self.at(public.name, index)

    def check(self, envelope: Envelope, index: int) -> tuple[Statement, TrustedIdentity]:
        """The statement in ``envelope``, once it is one that its signer may make at log index ``index``.

        Raises NotTrusted (signatures, rights, releases), Conflict (its signer is compromised), Invalid.
        """
        statement, public = check_statement(envelope, self._keys)
        trusted = self.at(public.name, index)
        self._check_rights(trusted, statement, index)
        return statement, trusted

    def check_about(self, name: str, index: int, kind: str, model: str) -> None:
        """Check that ``name`` may speak about the model name ``model`` at ``index``. Raises NotTrusted, Conflict."""
        self.at(name, index).check_about(kind, model)

    def ever_spoke(self, name: str, kind: str, model: str) -> bool:
        """Whether ``name`` might at any time sign ``kind`` statements about the model name ``model``."""
        return any(
            not {ANY, kind}.isdisjoint(each.may_sign) and any(matches(pattern, model) for pattern in each.releases)
            for each in self.stretches(name)
        )

    def follow(self, index: int, envelope: Envelope, statement: Statement) -> None:
        """Take in a trust statement that ``check`` let pass at ``index``. A change that the root knows already changes nothing.

        Raises NotTrusted (beyond the signer's rights, no proof of possession, of another keep, other keys), Conflict (a copy,
        or the name is taken), Missing (nobody of that name), Invalid.
        """
        said = predicate_of(statement, Trust)
        signer = self.at(check_statement(envelope, self._keys)[1].name, index)
        if statement.subject != (keep_resource(self.root.origin),):
            raise NotTrusted("this trust statement is about another keep")
        identifier = digest_of(encode_statement(statement))
        if identifier in self._seen:
            raise Conflict("this trust statement was logged before: a copy does not count")
        self._seen.add(identifier)  # also when it does not count: else a copy could, at a place where it fits
        if said.change not in CHANGES:
            raise Invalid(f"a trust statement cannot {said.change[:40]!r}: known are {', '.join(CHANGES)}")
        if said.change in (ROTATE, ADD):
            self._begin(index, envelope, said, signer)
        else:
            self._restrict(index, said, signer)

    def _begin(self, index: int, envelope: Envelope, said: Trust, signer: TrustedIdentity) -> None:
        if said.identity is None:
            raise Invalid(f"a trust statement that says {said.change} needs an identity")
        public, rights = said.identity.public(), Rights(said.may_sign, said.releases)
        if not signer.rights.covers(rights):
            raise NotTrusted(f"{signer.name} may not give {public.name[:80]} more rights than it has")
        if said.change == ROTATE:
            if said.name != signer.name:
                raise NotTrusted(
                    f"{signer.name} may not rotate {said.name[:80]}: only an identity itself announces its successor"
                )
            check_envelope(envelope, public, PAYLOAD_TYPE)  # the proof of possession: the successor signed the very same bytes
        elif said.name != public.name:
            raise Invalid("a trust statement that adds an identity names it twice, and differently")
        known = self._names.get(public.name)
        if known is not None and (known != public or not any(each.first == index + 1 for each in self.stretches(public.name))):
            raise Conflict(f"{public.name[:80]} is the name of an identity already: names are never used again")
        self._announced[public.name] = Announced(public, signer.name, index)
        if known is not None:
            return
        self._know(public)
        fresh = TrustedIdentity(public, rights.may_sign, index + 1, None, rights.releases)
        kept = self._ended(signer.name, index + 1) if said.change == ROTATE else self.root.identities
        self._become((*kept, fresh))

    def _restrict(self, index: int, said: Trust, signer: TrustedIdentity) -> None:
        """Limit or remove an identity from the next index on; its earlier stretch stays as it is."""
        found = [each for each in self.stretches(said.name) if each.first <= index]
        if not found:
            raise Missing(f"no identity of the trust root is called {said.name[:80]!r}")
        last = found[-1]
        if last.until is not None and last.until <= index:
            raise Conflict(f"{said.name} ended at log index {last.until}: it cannot be changed any more")
        rights = Rights(said.may_sign, said.releases)
        if not signer.rights.covers(last.rights) or (said.change == LIMIT and not signer.rights.covers(rights)):
            raise NotTrusted(f"{signer.name} may not {said.change} {said.name}, which has rights that it lacks")
        if said.change == LIMIT:
            self._limited.append(Announced(last.public, signer.name, index))
        if last.until is not None:
            return  # the root in hand knows this end, or ends it later by hand
        ended = self._ended(said.name, index + 1)
        if said.change == LIMIT:
            ended = (*ended, TrustedIdentity(last.public, rights.may_sign, index + 1, None, rights.releases))
        self._become(ended)

    def _ended(self, name: str, until: int) -> tuple[TrustedIdentity, ...]:
        """The identities with the open stretch of ``name`` ended before ``until``."""
        return tuple(
            msgspec.structs.replace(each, until=until) if each.name == name and each.until is None else each
            for each in self.root.identities
        )

    def _check_rights(self, trusted: TrustedIdentity, statement: Statement, index: int) -> None:
        kind = statement.predicate_type
        trusted.check_may_sign(short_type(kind), index)
        predicate = PREDICATES.get(kind)
        if predicate is not None and kind not in _JUDGED_ELSEWHERE and "*" not in trusted.releases:
            trusted.check_about(short_type(kind), predicate_of(statement, predicate).model())

    def _know(self, public: PublicIdentity) -> None:
        for known in (self._names.get(public.name), *(self._keys.get(key) for key in public.key_ids)):
            if known is not None and known != public:
                raise NotTrusted(f"the identities {known.name[:80]} and {public.name[:80]} share a name or a key")
        self._names[public.name] = self._keys[public.key_ids[0]] = public

    def _become(self, identities: tuple[TrustedIdentity, ...]) -> None:
        self._roots.append(msgspec.structs.replace(self.root, identities=identities))

    def __iter__(self) -> Iterator[TrustedIdentity]:
        return iter(self.root.identities)
