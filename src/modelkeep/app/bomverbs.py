"""Verbs about bills of materials: write one, record it, and check one against the log."""

import msgspec

from modelkeep.app.intelresults import BomChecked, BomWritten
from modelkeep.app.intelverbs import IntelVerbs
from modelkeep.app.verbs import verb
from modelkeep.core.values import Digest, ReleaseRef, Resource, digest_of, parse_digest
from modelkeep.custody.bom import FORMAT, write_bill
from modelkeep.custody.dossier import Dossier
from modelkeep.errors import Conflict, NotTrusted
from modelkeep.ledger.attestations import Bom
from modelkeep.ledger.statements import make_statement

FILE = "bom.json"


class BomVerbs(IntelVerbs):
    """bom."""

    @verb("show")
    def bom(self, *, ref: str) -> BomWritten:
        """The bill of materials of a release, from the log alone. Raises Missing, NotTrusted."""
        return self._written(self.ref(ref))

    @verb("bom.record")
    def bom_record(self, *, ref: str) -> BomWritten:
        """The same, and a statement in the log that these bytes were written; once for the same bytes. Raises Missing."""
        parsed = self.ref(ref)
        written = self._written(parsed)
        if written.log_index is not None:
            return written
        known = self.premises.registry().book.dossier(parsed)
        desk, release = self.premises.desk(), known.release
        said = Bom(
            actor=self.actor.subject,
            at=self.premises.clock.now_ns(),
            release=str(parsed),
            format=FORMAT,
            components=written.components,
            serial=written.serial,
        )
        subjects = Resource(release.said.filename, release.about), Resource(FILE, digest_of(written.document))
        (index,) = desk.log_statements([make_statement(said, *subjects)])
        return msgspec.structs.replace(written, log_index=index)

    @verb("show")
    def bom_check(self, *, ref: str, digest: str, through: int) -> BomChecked:
        """Check that the document with this SHA-256 is what the first ``through`` entries of the log say of a release.

        ``through``: as the document itself says (``custody.bom.made_through``). Raises NotTrusted (it is not), Conflict (there
        are fewer entries), Invalid, Missing.
        """
        parsed, wanted = self.ref(ref), parse_digest(digest)
        registry = self.premises.registry()
        if through > registry.view.checkpoint.size:
            raise Conflict(f"this bill of materials was made from {through} log entries, and there are fewer here")
        book = registry.book
        bill = write_bill(book.dossier(parsed, through), self.premises.trust.origin)
        if bill.digest != wanted or bill.through != through:
            raise NotTrusted(f"this bill of materials is not what the first {through} log entries say of {parsed}")
        known = book.dossier(parsed)
        later = sum(one.index >= through for one in known.everything())
        return BomChecked(str(parsed), bill.digest, through, later, _recorded(known, bill.digest))

    def _written(self, ref: ReleaseRef) -> BomWritten:
        known = self.premises.registry().book.dossier(ref)
        bill = write_bill(known, self.premises.trust.origin)
        recorded = _recorded(known, bill.digest)
        return BomWritten(
            ref=str(ref),
            document=bill.document,
            digest=bill.digest,
            serial=bill.serial,
            components=bill.components,
            vulnerabilities=bill.vulnerabilities,
            through=bill.through,
            log_index=recorded[-1] if recorded else None,
        )


def _recorded(known: Dossier, digest: Digest) -> tuple[int, ...]:
    """Log indexes of the statements that record these bytes."""
    return tuple(one.index for one in known.bills if one.second == digest)
