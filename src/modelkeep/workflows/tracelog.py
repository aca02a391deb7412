"""A trace report against the whole releases log, where its reader has that: what single proofs cannot show.

A proof shows that an entry is in the log. That there is no other, earlier one, of a key that would have fitted less well, of a
report that had told the key, or of more accounts than were tested, shows only who reads all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from modelkeep.core.values import ReleaseRef
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import NotTrusted
from modelkeep.extraction.evalues import p_of
from modelkeep.ledger.log import LogView
from modelkeep.workflows.decisions import Decisions, OpenedKey, decisions_of
from modelkeep.workflows.traceprobes import Case, Fixed, Found
from modelkeep.workflows.tracereport import Accused

SHOWN = frozenset({"opened", "accounts", "epochs", "first"})
"""Of a report's caveats, what the whole log settles."""


@dataclass(frozen=True, eq=False)
class WholeLog:
    """All of a releases log, read under the keep's public keys."""

    book: EvidenceBook
    decisions: Decisions

    @classmethod
    def read(cls, view: LogView, trust: TrustRoot) -> "WholeLog":
        """Read what ``view`` has. Raises NotTrusted (an entry that nobody honest wrote, too), Unavailable."""
        book = EvidenceBook(trust)
        book.catch_up(view, view.checkpoint.size)
        if book.suspicious is not None:
            raise NotTrusted(f"entry {book.suspicious.index} of the releases log does not count: {book.suspicious.why}")
        return cls(book, decisions_of(view, trust))


def check_log(log: WholeLog, case: Case, fixed: Fixed | None, logs: Mapping[str, float]) -> list[Found]:
    """Check a report against all of the log. ``logs``: the log of e by accused account, computed again. Raises NotTrusted."""
    said, ref = case.said, ReleaseRef.parse(case.said.release)
    first = log.book.profiled_at(ref)
    if fixed is not None and fixed.index != first:
        raise NotTrusted(f"the log said first in entry {first} what the code of {ref} is, and the report goes by {fixed.index}")
    found = [_check_pool(log, case)] if said.probes.how == "data" and said.probes.pool else []
    for one in said.accused:
        _check_key(log, case, ref, one)
    known = max(log.book.accounts_marked(ref), said.accounts)
    words = f"the log has keys of {known} accounts for {ref}, and {said.accounts} were tested"
    least = {subject: min(1.0, p_of(log_e) * known) for subject, log_e in logs.items()}
    words += "".join(f"; for all of them p of {subject} is {p:.2g}" for subject, p in least.items())
    return [*found, Found("log", f"no other key, and none that a report had told before: {words}")]


def _check_pool(log: WholeLog, case: Case) -> Found:
    said = case.said
    mine = {root: pool for (release, root), pool in log.decisions.pools.items() if release == said.release}
    if said.probes.pool not in mine or mine[said.probes.pool].index != said.probes.entry:
        raise NotTrusted(f"entry {said.probes.entry} is not the first of the log that says of this pool of probes")
    others = sum(pool.index < min((one.entry for one in said.accused), default=0) for pool in mine.values())
    return Found("pools", f"one of {max(others, 1)} that were logged before the keys: choosing among them gains that factor")


def _check_key(log: WholeLog, case: Case, ref: ReleaseRef, one: Accused) -> None:
    """The log has this key, and no other, for the account in this epoch; no report had told it while the suspect was young."""
    said, known = case.said, log.book.committed(one.subject, ref)
    if one.epoch >= len(known) or (known[one.epoch].commitment, known[one.epoch].entry) != (one.commitment, one.entry):
        raise NotTrusted(f"the key of {one.subject} in epoch {one.epoch} that counts in the log is not the report's")
    by_then = sum(committed.at <= said.at for committed in known)
    if by_then > one.epochs:
        raise NotTrusted(f"{one.subject} had {by_then} keys when the report was made, and it corrects for {one.epochs}")
    seen = min(filter(None, (said.seen, case.reader.seen)), default=0)
    opened = log.decisions.opened.get(OpenedKey(said.release, one.subject, one.epoch), said.at)
    if opened < said.at and not 0 < seen <= opened:
        raise NotTrusted(f"an earlier report told the key of {one.subject}: whoever read that could have made the suspect")
