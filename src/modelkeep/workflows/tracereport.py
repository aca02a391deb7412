"""A trace that somebody else can run again: what is claimed, signed, and the numbers that it was computed from.

A report is a set of files. ``statement.json`` signs the digests of all others. ``probes.safetensors`` has the probes, both
models' answers to them and the cells of the code; for each accused account there are its distinct questions and the answers,
the proof that the releases log commits to its key, and the proof of its first recorded answer. The key of nobody else is told.
What a report cannot prove stands in it in words (``CAVEATS``).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import Digest, Resource, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.extraction.accusation import Together
from modelkeep.extraction.flips import Spots, spots_of
from modelkeep.extraction.ladder import DEFAULT, respond
from modelkeep.extraction.perturb import Cells, Marker, cells_of, commitment
from modelkeep.extraction.probes import name_pool
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.reading import Flipped, Heard, Lied
from modelkeep.formats.safetensors import dump
from modelkeep.ledger.predicates import Predicate, TraceTerms
from modelkeep.ledger.statements import encode_statement, make_statement, sign_statement

Floats = NDArray[np.float64]

STATEMENT, PLAIN, PROBES = "statement.json", "report.json", "probes.safetensors"
CODE, POOL = "code.tlog-proof", "pool.tlog-proof"
DECIMALS = 4
"""Of the answers that a gateway gives."""
LEAST_SIGNIFICANT = 0.1
"""Nobody is accused at a corrected p-value above this, whatever is asked for: the accusation stands in the log for good."""
CAVEATS = {
    "clean": (
        "The clean answers are what the owner says that the model answers without a mark. An expert who is shown the model "
        "(its digest is in the log) asks it the questions and the probes again."
    ),
    "questions": (
        "That these are all questions of the account, in the order in which it asked them, is the owner's word, too: "
        "'modelkeep log verify' checks the audit logs that they come from, and how many records each account has in them. p "
        "from the probes alone needs no question."
    ),
    "probes": (
        "That the probes were drawn as the report says, and not picked to fit a key, is the owner's word: an expert draws "
        "others, and asks both models."
    ),
    "seed": (
        "That the value that drew the probes is the one that both sides meant is for the reader to know. Who could try n "
        "values, or n spellings of an address, gains a factor of n at most."
    ),
    "terms": "That the size of the mark and its rounding were not chosen afterwards is the owner's word.",
    "opened": (
        "That no earlier report had opened these keys before the suspect was there is the owner's word: the log has every "
        "report."
    ),
    "accounts": (
        "How many accounts were tested, which corrects p, is the owner's word: the releases log commits to a key of every "
        "account that was ever answered, and whoever reads it can count them."
    ),
    "first": (
        "That the log said nothing else of cells, mark and pools of probes before, among which the owner could choose once the "
        "suspect was there, is his word, too: n of them gain a factor of n at most. Who reads all of the log can count them."
    ),
    "releases": (
        "p is corrected for the accounts of this release. Who has the suspect tested against n releases, or n suspects against "
        "one, and shows the best, gains a factor of n at most, which nothing takes off: the log has each trace that a keep ran."
    ),
    "epochs": (
        "How many epochs an account was in, and that it asked nothing in those between two that are shown, is the owner's "
        "word: the log commits to every key."
    ),
    "code": "Where no proof of the code is in it, that cells and spots were fixed before the keys is the owner's word.",
    "clusters": (
        "Which accounts share a network or a sign-up hour, and how many such groups there are, is the owner's word, too."
    ),
    "times": (
        "Times are those of the keep's clock. Witnesses' cosignatures under the log's checkpoints say more where there are "
        "some."
    ),
    "key": (
        "Whoever had the account's key, its owner or who stole the owner's master key, can make a suspect that is traced to "
        "it. And the owner can work out a key before the log commits to it: pool and key could be made for each other, with "
        "models in hand that he thinks the suspect will resemble."
    ),
}
"""What a reader must know who was told a p-value, by what it is about."""


def caveats(shown: Collection[str]) -> tuple[str, ...]:
    """Those of ``CAVEATS`` that stay where what is ``shown`` needs nobody's word."""
    return tuple(words for about, words in CAVEATS.items() if about not in shown)


class Probed(msgspec.Struct, frozen=True):
    """Where the probes come from: ``how`` is ``data`` (the owner handed them in), ``theirs`` (the other side did), ``beacon``
    (drawn by ``said``, which nobody knew when the suspect was fixed) or ``log`` (drawn by the suspect's digest alone);
    ``said``: the rows' digest or the beacon as hex; ``count``. ``pool``: Merkle root over so many ``rows`` that they are drawn
    of, by the ``beacon`` (hex, "" = none) and the suspect's digest, "" where they are not; log index ``entry`` says so."""

    how: str
    said: str
    count: int
    pool: str = ""
    rows: int = 0
    entry: int = -1
    beacon: str = ""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Where probes stand in the pool ``root`` of so many ``rows`` that log index ``entry`` says: ``index`` (m,) and inclusion
    ``paths`` (m, depth, 32), as ``Pool.paths`` has them."""

    root: str
    rows: int
    entry: int
    index: NDArray[np.int64]
    paths: NDArray[np.uint8]


class Accused(msgspec.Struct, frozen=True):
    """An account whose p-value is significant, or that of a group which it is in, and one opened key of it.

    It has an entry for each epoch of the run that says most, if it asked something then. ``key``: for this release in this
    ``epoch``, hex; ``epochs``: how many keys the log committed to for it, which corrects p for the choice of the run;
    ``entry``: index in the releases log of the statement that commits to the key; ``p``: of the account's own test, the same
    in all its entries, ``corrected``: by Bonferroni; ``questions`` and what follows is of this epoch; ``carried``: recorded
    answers that are the clean answer with this key's mark, to the last decimal; ``share``: of the regions in which it was
    answered falsely after a review, 0 = it was not; ``flips``: of the spots in which its labels were flipped; ``statistics``:
    log10 e-values; the rest: file names.
    """

    subject: str
    commitment: str
    key: str
    entry: int
    p: float
    corrected: float
    questions: int
    carried: int
    statistics: dict[str, float]
    numbers: str
    proof: str
    first: str
    share: float = 0.0
    flips: float = 0.0
    epoch: int = 0
    epochs: int = 1


class Grouped(msgspec.Struct, frozen=True):
    """Accounts that are accused as one: somebody among them taught the suspect. ``name``: of the cluster that they share, "" =
    a set; ``members``: accounts of ``accused`` whose e-values are multiplied; ``others``: members of the cluster who each
    count 1/2; ``tests``: groups that could have been named, which correct ``p``."""

    name: str
    members: tuple[str, ...]
    others: int
    tests: float
    p: float


class TraceReport(Predicate, frozen=True, kw_only=True):
    """A suspect was tested against the accounts of a release. Subjects: the suspect, then the model file.

    ``kind``: how the suspect was asked, ``onnx``, ``address`` or ``function``; ``epsilon``, ``decimals``: of the mark;
    ``accounts``: tested, which corrects p; ``least``: the smallest corrected p of all; ``files``: digests of all other files;
    ``seen``: Unix nanoseconds by which the suspect was there, 0 = not known.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:trace-report:v1"
    release: str
    kind: str
    probes: Probed
    epsilon: float
    decimals: int
    accounts: int
    significance: float
    least: float
    accused: tuple[Accused, ...]
    files: dict[str, Digest]
    together: tuple[Grouped, ...] = ()
    seen: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """All that is shown of one epoch of an accused account. ``served``: answers (n, k) as they left to the distinct questions
    in ``heard``; ``proof``: tlog-proof of log entry ``entry``, which commits to the key; ``first``: tlog-proof of the first
    audit record, b"" where no checkpoint covers it."""

    subject: str
    epoch: int
    epochs: int
    key: bytes
    entry: int
    p: float
    corrected: float
    statistics: dict[str, float]
    heard: Heard
    lied: Lied | None
    flipped: Flipped | None
    served: Floats
    proof: bytes
    first: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """A trace as the owner has it; fields as in ``TraceReport``. ``code``: tlog-proof of the log entry that says what cells and
    spots are, from before any key of an accused account was committed to; b"" where there is none. ``pooled``, ``beacon``: how
    the probes were drawn of a pool, None where they were not; ``pool``: tlog-proof of what the log says of rows that were
    handed in. ``terms``: the log says with the code what epsilon and decimals are."""

    actor: str
    at: int
    release: str
    model: Resource
    suspect: Resource
    kind: str
    how: str
    said: str
    probes: Heard
    cells: Cells
    spots: Spots
    epsilon: float
    decimals: int
    accounts: int
    significance: float
    least: float
    accused: tuple[Opened, ...]
    together: tuple[Together, ...] = ()
    seen: int = 0
    code: bytes = b""
    pooled: Pooled | None = None
    beacon: bytes = b""
    pool: bytes = b""
    terms: bool = False

    @property
    def shown(self) -> set[str]:
        """Of ``CAVEATS``, what the report itself shows."""
        found = {"code"} if self.code else set()
        found |= {"terms"} if self.code and self.terms else set()
        return found | ({"probes"} if self.pooled is not None and (self.code or self.pool) else set())

    @property
    def newest(self) -> tuple[str, ...]:
        """Accounts of which it opens the newest key: they must have another before it leaves."""
        return tuple(one.subject for one in self.accused if one.epoch == one.epochs - 1)


def code_digest(cells: Cells, spots: Spots) -> Digest:
    """What the log says of cells and spots before any account has a key: SHA-256 over a tag and, for each array, its shape and
    its little-endian numbers. Whoever could choose them afterwards could choose those that accuse somebody."""
    share = np.array([cells.fine])
    said = [b"modelkeep/trace-code/2", share.astype("<f8").tobytes()] if cells.fine else [b"modelkeep/trace-code/1"]
    for array, kind in (
        (cells.mean, "<f4"),
        (cells.slope, "<f4"),
        (cells.offset, "<f4"),
        (spots.mean, "<f8"),
        (spots.slope, "<f8"),
    ):
        said += [f"{array.shape}".encode(), np.ascontiguousarray(array, dtype=kind).tobytes()]
    return digest_of(b"\0".join(said))


def code_of(arrays: Mapping[str, NDArray[Any]]) -> Digest:
    """The same of a profile's arrays. Raises Invalid."""
    profile = Profile.from_arrays(arrays)
    return code_digest(cells_of(profile), spots_of(profile))


def terms_of(arrays: Mapping[str, NDArray[Any]], epsilon: float, decimals: int) -> TraceTerms | None:
    """What else a trace goes by, of a profile's arrays: the mark's size and rounding, and the pool that probes are drawn of;
    None for a model without classes. Raises Invalid."""
    profile = Profile.from_arrays(arrays)
    if not profile.n_classes:
        return None
    return TraceTerms(epsilon, decimals, *name_pool(profile.embedding))


def make_report(claim: Claim, signer: StatementSigner, pages: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a report by name. ``pages``: to read, whose digests are signed with the others'. Raises TooLarge (too many
    accused for a statement)."""
    cells = claim.cells
    shown: dict[str, NDArray[Any]] = {"mean": cells.mean, "slope": cells.slope, "offset": cells.offset}
    shown |= {"fine": np.array([cells.fine])} if cells.fine else {}
    shown |= {"spots.mean": claim.spots.mean, "spots.slope": np.ascontiguousarray(claim.spots.slope)}
    if claim.pooled is not None:
        shown |= {"pool.index": claim.pooled.index, "pool.paths": claim.pooled.paths}
    files = {**pages, PROBES: dump(_heard(claim.probes) | shown)}
    files |= {name: proof for name, proof in ((CODE, claim.code), (POOL, claim.pool)) if proof}
    accused = []
    for number, one in enumerate(claim.accused, 1):
        numbers, proof, first = (f"account-{number}.{end}" for end in ("safetensors", "tlog-proof", "first.tlog-proof"))
        lied = {} if one.lied is None else _heard(one.lied.heard, "lied.")
        flipped = {} if one.flipped is None else _heard(one.flipped.heard, "flipped.")
        files[numbers] = dump(_heard(one.heard) | lied | flipped | {"served": one.served})
        files[proof] = one.proof
        if one.first:
            files[first] = one.first
        accused.append(
            Accused(
                subject=one.subject,
                commitment=commitment(one.key).hex(),
                key=one.key.hex(),
                entry=one.entry,
                p=one.p,
                corrected=one.corrected,
                questions=len(one.heard.x),
                carried=carried(Marker(one.key, cells, claim.epsilon, claim.decimals), one.heard, one.served, claim.decimals),
                statistics=one.statistics,
                numbers=numbers,
                proof=proof,
                first=first if one.first else "",
                share=0.0 if one.lied is None else one.lied.share,
                flips=0.0 if one.flipped is None else one.flipped.share,
                epoch=one.epoch,
                epochs=one.epochs,
            )
        )
    said = TraceReport(
        actor=claim.actor,
        at=claim.at,
        release=claim.release,
        kind=claim.kind,
        probes=_probed(claim),
        epsilon=claim.epsilon,
        decimals=claim.decimals,
        accounts=claim.accounts,
        significance=claim.significance,
        least=claim.least,
        accused=tuple(accused),
        files={name: digest_of(data) for name, data in files.items()},
        seen=claim.seen,
        together=tuple(Grouped(one.name, one.members, one.others, one.tests, one.p) for one in claim.together),
    )
    statement = make_statement(said, claim.suspect, claim.model)
    return {**files, PLAIN: encode_statement(statement), STATEMENT: sign_statement(statement, signer)}


def _probed(claim: Claim) -> Probed:
    found = Probed(claim.how, claim.said, len(claim.probes.x))
    if claim.pooled is None:
        return found
    return msgspec.structs.replace(
        found, pool=claim.pooled.root, rows=claim.pooled.rows, entry=claim.pooled.entry, beacon=claim.beacon.hex()
    )


def carried(marker: Marker, heard: Heard, served: Floats, decimals: int) -> int:
    """How many of the answers ``served`` (n, k) are the clean answer with this mark and the usual rounding; others were given
    at another rung of the ladder."""
    if not len(served):
        return 0
    expected = respond(DEFAULT.steps[0], marker.apply(heard.x, heard.clean), decimals)
    return int((np.abs(served - expected).max(axis=1) < 0.5 * 10.0**-decimals).sum())


def _heard(heard: Heard, prefix: str = "") -> dict[str, NDArray[Any]]:
    return {f"{prefix}{part}": np.ascontiguousarray(getattr(heard, part)) for part in ("x", "clean", "read")}
