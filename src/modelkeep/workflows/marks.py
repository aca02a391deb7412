"""The account marks' commitments: said in the releases log before the account's first answer, each account for itself."""

from collections.abc import Iterable, Iterator

from modelkeep.core.values import Resource, Statement
from modelkeep.custody.admission import EvidenceBook, ReleaseEvidence
from modelkeep.extraction.perturb import commitment
from modelkeep.ledger.statements import Commitment, commitment_statements
from modelkeep.workflows.predict import account_key


def missing_marks(
    book: EvidenceBook, releases: Iterable[ReleaseEvidence], subjects: Iterable[str], *, master: bytes, actor: str, at: int
) -> Iterator[Statement]:
    """Statements that commit to the mark of every subject on every release for which the log has no commitment yet.

    ``master``: the watermark family's secret; ``at``: Unix nanoseconds.
    """
    wanted = list(subjects)
    for evidence in releases:
        entries = [
            Commitment(subject, commitment(account_key(master, subject, evidence.ref)).hex())
            for subject in wanted
            if book.commitment(subject, evidence.ref) is None
        ]
        model = Resource(evidence.filename, evidence.model)
        yield from commitment_statements(model, str(evidence.ref), entries, actor=actor, at=at)
