"""A trace report, computed again with the public keys of a keep and nothing else of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.extraction.accusation import MOST, cluster_log_e, corrected, set_tests
from modelkeep.extraction.evalues import SMALLEST, p_of
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.flips import COORDINATES, Spots
from modelkeep.extraction.perturb import Cells, Marker, commitment
from modelkeep.extraction.reading import Flipped, Heard, Lied, Reading, filled, first_asked
from modelkeep.extraction.trace import runs_of
from modelkeep.formats.safetensors import load
from modelkeep.ledger.predicates import Profile, TraceCommitments
from modelkeep.ledger.proofs import check_proof, origin_of
from modelkeep.ledger.statements import check_statement, encode_statement, predicate_of
from modelkeep.serving.journal import decode_entry
from modelkeep.workflows.tracelog import SHOWN, WholeLog, check_log
from modelkeep.workflows.traceprobes import Case, Fixed, Found, Origin, Reader, check_origin
from modelkeep.workflows.tracereport import (
    CODE,
    LEAST_SIGNIFICANT,
    PLAIN,
    PROBES,
    STATEMENT,
    Accused,
    Grouped,
    TraceReport,
    carried,
    caveats,
    code_digest,
)

Floats = NDArray[np.float64]


class ReportChecked(msgspec.Struct, frozen=True):
    """A report that holds. ``p``: corrected, as computed here, by account; ``found``: everything that was checked; ``caveats``:
    what the report does not prove; ``settled``: the log said what cells, mark and pool of probes are before it committed to the
    keys (or the reader has the probes from the other side), so that nobody could choose them with a key and the suspect in
    hand."""

    release: str
    suspect: str
    p: dict[str, float]
    found: tuple[Found, ...]
    caveats: tuple[str, ...]
    settled: bool


class _Shown(NamedTuple):
    heard: Heard
    more: dict[str, NDArray[Any]]


def check_report(
    files: Mapping[str, bytes], root: TrustRoot, reader: Reader | None = None, log: WholeLog | None = None
) -> ReportChecked:
    """Compute a report again, with the public keys of a keep and nothing else of it, and with what its ``reader`` knows; and
    against the whole releases log, where he has it.

    Raises NotTrusted (what does not hold), Invalid (a file is missing or no such file).
    """
    reader = reader or Reader()
    signatories = Signatories(root)
    statement, identity = check_statement(parse_envelope(_file(files, STATEMENT)), signatories.identities)
    said = predicate_of(statement, TraceReport)
    for name, digest in said.files.items():
        if digest_of(_file(files, name)) != digest:
            raise NotTrusted(f"{name} of the report is not the file that was signed")
    if _file(files, PLAIN) != encode_statement(statement):
        raise NotTrusted(f"{PLAIN} does not say what {STATEMENT} signs")
    found = [Found("signature", f"{identity.name} signed the report and the digests of its {len(said.files)} files")]
    for name in (PROBES, *(each for one in said.accused for each in (one.numbers, one.proof, one.first) if each)):
        if name not in said.files:
            raise NotTrusted(f"{name} of the report is not among the files that were signed")
    _check_corrections(said)
    if len(statement.subject) != 2:
        raise NotTrusted("the report is not about a suspect and a model")
    case = Case(files, root, signatories, said, *statement.subject, reader)
    if reader.suspect_digest not in (None, case.suspect.digest):
        raise NotTrusted(f"the suspect is {reader.suspect_digest}, and the report is about {case.suspect.digest}")
    probes = _shown(files, PROBES)
    cells, spots = _cells(probes.more), _spots(probes.more, probes.heard.x.shape[1])
    fixed = _fixed(case, cells, spots)
    origin = check_origin(case, (probes.heard.x, probes.more), fixed)
    found += [*_said_of_code(fixed, case), *origin.found]
    computing = _Computing(case, cells, spots, fixed, origin, Reading(probes.heard, said.epsilon))
    p, logs = dict[str, float](), dict[str, float]()
    grouped = {subject for group in said.together for subject in group.members}
    for subject, keys in _by_account(said).items():
        again, told = computing.account(subject, keys)
        logs[subject] = _claimed(keys, again)
        p[subject] = min(1.0, p_of(logs[subject]) * said.accounts)
        if p[subject] > said.significance and subject not in grouped:
            raise NotTrusted(f"the p-value of {subject} is {p[subject]:.2g}, and {said.significance:g} is significant")
        found += [*told, _p_value(keys, logs[subject], p[subject], said, len(probes.heard.x))]
    found += [_multiplied(group, said, logs) for group in said.together]
    for name in (PROBES, *(one.numbers for one in said.accused)):
        found += _asked_again(case, _shown(files, name).heard, name)
    found += [] if log is None else check_log(log, case, fixed, logs)
    least = min(p.values(), default=said.least)
    if not said.accused:
        found.append(Found("verdict", f"nobody: the smallest corrected p-value of {said.accounts} accounts is {least:.2g}"))
    shown = {*origin.shown, *(() if fixed is None else ("code",) if fixed.terms is None else ("code", "terms"))}
    shown |= (set() if reader.model is None else {"clean"}) | (set() if log is None else SHOWN)
    settled = {"probes", "code", "terms"} <= shown
    return ReportChecked(said.release, str(case.suspect.digest), p, tuple(found), caveats(shown), settled)


@dataclass(frozen=True, eq=False)
class _Computing:
    """What the p-values of a report are computed from."""

    case: Case
    cells: Cells
    spots: Spots
    fixed: Fixed | None
    origin: Origin
    reading: Reading

    def account(self, subject: str, keys: Sequence[Accused]) -> tuple[float, list[Found]]:
        """The log of e of an accused account, and what was checked. Raises NotTrusted, Invalid."""
        said, alone, fresh, found = self.case.said, 0.0, 0.0, list[Found]()
        for one in keys:
            if self.fixed is not None and self.fixed.index >= one.entry:
                raise NotTrusted(f"the log says what cells and spots are after it committed to the key of {subject}")
            if self.origin.after >= one.entry:
                raise NotTrusted(f"the log says of which rows probes are drawn after it committed to the key of {subject}")
            found += _committed(self.case, one)
            log_e, told = self._key(one, _shown(self.case.files, one.numbers))
            alone += log_e
            fresh += self.reading.weigh(_key(one), self.cells, None, decimals=said.decimals)[1]["all"] * math.log(10)
            found += told
        runs = math.log(runs_of(keys[0].epochs))
        return alone - runs, [*found, _from_probes(subject, fresh - runs, said)]

    def _key(self, one: Accused, shown: _Shown) -> tuple[float, list[Found]]:
        """The log of e of one key, from the numbers. Raises NotTrusted: they are not what the report says of them."""
        said = self.case.said
        if len(first_asked(shown.heard.x)) != len(shown.heard.x) or len(shown.heard.x) != one.questions:
            raise NotTrusted(f"the questions of {one.subject} in the report are not {one.questions} distinct ones")
        if not 0.0 <= one.share <= 1.0:
            raise Invalid(f"the report says that {one.subject} was answered falsely in {one.share:.1%} of the regions")
        lied = Lied(one.share, _among(shown, "lied.", one)) if one.share else None
        if not 0.0 <= one.flips < 1.0:
            raise Invalid(f"the report says that {one.flips:.1%} of the labels of {one.subject} were flipped")
        flipped = Flipped(one.flips, self.spots, _among(shown, "flipped.", one)) if one.flips else None
        asked = shown.heard if one.questions else None
        _, statistics = self.reading.weigh(_key(one), self.cells, asked, lied=lied, flipped=flipped, decimals=said.decimals)
        marker = Marker(_key(one), self.cells, said.epsilon, said.decimals)
        served = np.asarray(shown.more.get("served", np.empty((0, 0))), dtype=np.float64)
        marks = carried(marker, shown.heard, served, said.decimals) if served.shape == shown.heard.clean.shape else 0
        if marks < one.carried:
            raise NotTrusted(f"{marks} recorded answers to {one.subject} carry the key's mark, and {one.carried} are claimed")
        words = f"{marks} of {len(served)} recorded answers are the clean answer with this key's mark, to the last decimal"
        return statistics["all"] * math.log(10), [Found("mark", words)]


def _said_of_code(fixed: Fixed | None, case: Case) -> list[Found]:
    """What the log said before of cells, spots and the mark. Raises NotTrusted: the report goes by another mark or model."""
    said, model = case.said, case.model.digest
    if fixed is None:
        words = "not shown: no proof of what the log says of cells and spots"
        return [Found("code", words), Found("terms", "not shown: the size of the mark and its rounding are the owner's word")]
    if fixed.model.digest != model:
        raise NotTrusted(f"the log says that {said.release} is {fixed.model.digest}, and the report is about {model}")
    found = [Found("code", f"entry {fixed.index} of the releases log says what its cells and spots are")]
    if fixed.terms is None:
        return [*found, Found("terms", "not shown: the size of the mark and its rounding are the owner's word")]
    if (fixed.terms.epsilon, fixed.terms.decimals) != (said.epsilon, said.decimals):
        raise NotTrusted(
            f"entry {fixed.index} of the log says a mark of {fixed.terms.epsilon:g} and {fixed.terms.decimals} decimals, and "
            f"the report goes by {said.epsilon:g} and {said.decimals}"
        )
    return [*found, Found("terms", f"it says that the mark is {said.epsilon:g} at most, and {said.decimals} decimals")]


def _from_probes(subject: str, log_e: float, said: TraceReport) -> Found:
    """What the probes say without any question of the account: whatever was left out of those, it stands."""
    p = min(1.0, p_of(log_e) * said.accounts)
    return Found("probes alone", f"{subject}: p = {p:.2g} after Bonferroni, whatever questions the report leaves out")


def rows_of(files: Mapping[str, bytes]) -> Floats:
    """The probes (m, d) of a report, not checked. Raises Invalid."""
    return _shown(files, PROBES).heard.x


def _committed(case: Case, one: Accused) -> list[Found]:
    """The log committed to the opened key, and did so before the account's first recorded answer by it, and before the suspect
    was seen if that is known. Raises NotTrusted."""
    said, root, model, files = case.said, case.root, case.model.digest, case.files
    seen = min(filter(None, (said.seen, case.reader.seen)), default=0)
    if commitment(_key(one)).hex() != one.commitment:
        raise NotTrusted(f"the opened key of {one.subject} is not the one that {one.commitment[:16]} commits to")
    proof, _ = check_proof(_file(files, one.proof), root.releases_log, root.releases_origin)
    if proof.index != one.entry:
        raise NotTrusted(f"{one.proof} proves entry {proof.index} of the log, and the report names {one.entry}")
    statement, _ = case.signatories.check(parse_envelope(proof.entry), proof.index)
    known = predicate_of(statement, TraceCommitments)
    entries = {(entry.subject, entry.commitment, entry.epoch) for entry in known.entries}
    if known.release != said.release or (one.subject, one.commitment, one.epoch) not in entries:
        raise NotTrusted(f"entry {one.entry} of the log does not commit to this key of {one.subject} for {said.release}")
    if statement.subject[0].digest != model:
        raise NotTrusted(f"entry {one.entry} of the log commits to a key for {statement.subject[0].digest}, not for {model}")
    of = f"{one.subject}, epoch {one.epoch}" if one.epochs > 1 else one.subject
    found = [Found("commitment", f"entry {one.entry} of the releases log commits to the key of {of}")]
    if seen and known.at >= seen:
        raise NotTrusted(f"the log committed to the key of {one.subject} after the suspect was seen: nothing can be claimed")
    if not seen:
        found.append(Found("age", "not shown: who commits to a key once the suspect is there can make one that fits"))
    else:
        found.append(Found("age", f"it committed to it {(seen - known.at) / 1e9:,.0f} s before the suspect was seen"))
    if not one.first:
        return [*found, Found("order", f"not shown: no proof of the first recorded answer of {one.subject}")]
    data = _file(files, one.first)
    origin = origin_of(data)
    if not origin.startswith(f"{root.origin}/audit/"):
        raise NotTrusted(f"{one.first} is of the log {origin[:80]!r}, which is no audit log of this keep")
    first, _ = check_proof(data, encode_vkey(origin, root.audit_key), origin)
    record = decode_entry(first.entry, first.index)
    if (record.subject, record.release) != (one.subject, said.release):
        raise NotTrusted(f"{one.first} proves a record that is none of {one.subject} on {said.release}")
    if record.t < known.at:
        raise NotTrusted(f"{one.subject} was answered before the log committed to its key")
    return [*found, Found("order", f"it was committed to {(record.t - known.at) / 1e9:,.0f} s before its first answer")]


def _check_corrections(said: TraceReport) -> None:
    """Raises NotTrusted: it corrects for fewer accounts than it accuses, or calls significant what is not."""
    accused = len({one.subject for one in said.accused})
    if said.accounts < accused:
        raise NotTrusted(f"the report accuses {accused} accounts, and says that {said.accounts} were tested")
    if not 0.0 < said.significance <= LEAST_SIGNIFICANT:
        raise NotTrusted(f"the report calls {said.significance:g} significant, and at most {LEAST_SIGNIFICANT:g} is")


def _by_account(said: TraceReport) -> dict[str, list[Accused]]:
    """The opened keys of each accused account, ascending by epoch. Raises NotTrusted: they are no epochs of one account."""
    found: dict[str, list[Accused]] = {}
    for one in said.accused:
        found.setdefault(one.subject, []).append(one)
    for subject, keys in found.items():
        epochs, same = [one.epoch for one in keys], {(one.p, one.corrected, one.epochs) for one in keys}
        if len(same) != 1 or epochs != sorted(set(epochs)) or not 0 <= epochs[0] <= epochs[-1] < keys[0].epochs:
            raise NotTrusted(f"the keys of {subject} that the report opens are not those of different epochs, with one p-value")
    return found


def _among(shown: _Shown, prefix: str, one: Accused) -> Heard:
    """The questions that were answered falsely, with the answers that stand beside them among all questions. Raises NotTrusted:
    one is none of those."""
    asked = fingerprints(shown.heard.x).tolist()
    places = {name: at for at, name in enumerate(asked)}
    found = [places.get(name, -1) for name in fingerprints(_arrays(shown.more, prefix, one.numbers).x).tolist()]
    if -1 in found or len(set(found)) != len(found):
        raise NotTrusted(
            f"{one.subject} was answered falsely on what is none of its questions in {one.numbers}, or on one twice"
        )
    return Heard(shown.heard.x[found], shown.heard.clean[found], shown.heard.read[found])


def _claimed(keys: Sequence[Accused], log_e: float) -> float:
    """The log of e of an account, computed again: no more than was claimed, which later ways to read a suspect may exceed, for
    nobody is accused by the best of several. Raises NotTrusted: p is larger than claimed."""
    alone = p_of(log_e)
    if alone > keys[0].p * 1.05 ** len(keys):  # a cell may fall to its neighbour on another processor
        raise NotTrusted(
            f"the p-value of {keys[0].subject} is {alone:.2g} when it is computed again, and {keys[0].p:.2g} is claimed"
        )
    return log_e if keys[0].p <= SMALLEST else min(log_e, -math.log(keys[0].p))


def _p_value(keys: Sequence[Accused], log_e: float, p: float, said: TraceReport, probes: int) -> Found:
    of = f"epochs {keys[0].epoch} to {keys[-1].epoch} of {keys[0].epochs}" if keys[0].epochs > 1 else ""
    words = f"p = {p_of(log_e):.2g}, {p:.2g} after Bonferroni over {said.accounts} accounts"
    asked = f"{sum(one.questions for one in keys)} questions and {probes} probes"
    return Found("p-value", f"{keys[0].subject}: {words}, from {asked}{f', by {of}' if of else ''}")


def _multiplied(group: Grouped, said: TraceReport, logs: Mapping[str, float]) -> Found:
    """The p-value of a group, from those of its members. Raises NotTrusted: it is larger than claimed, or not significant."""
    who = f"{group.name or 'the set'} of {', '.join(group.members)}"
    if len(set(group.members)) != len(group.members) or not set(group.members) <= logs.keys() or group.others < 0:
        raise NotTrusted(f"{who}: its members are not accounts that the report opens, each once")
    if not group.name and len(group.members) > MOST:
        raise NotTrusted(f"{who}: a set has at most {MOST} members, which is what its p-value is corrected for")
    counted = [logs[one] for one in group.members]
    tests = group.tests if group.name else set_tests(said.accounts, len(counted))
    log_e = cluster_log_e(counted, group.others) if group.name else sum(counted)
    p = corrected(log_e, tests)
    if p > said.significance or p > group.p * 1.05 ** len(counted) or tests < 1.0 or len(counted) > said.accounts:
        raise NotTrusted(f"{who}: its p-value is {p:.2g} when it is computed again, and {group.p:.2g} is claimed")
    return Found("together", f"{who}: p = {p:.2g} after Bonferroni over {tests:.3g} groups; somebody among them, it says")


def _cells(arrays: Mapping[str, NDArray[Any]]) -> Cells:
    """The cells of the code. Raises Invalid (arrays that are not there, or a share that is none)."""
    try:
        mean, slope, offset = (np.asarray(arrays[name], dtype=np.float32) for name in ("mean", "slope", "offset"))
    except KeyError as cause:
        raise Invalid(f"{PROBES} of the report lacks {cause}") from cause
    fine = np.asarray(arrays.get("fine", [0.0]), dtype=np.float64)
    if fine.shape != (1,) or not 0.0 <= fine[0] < 1.0:
        raise Invalid(f"{PROBES} of the report has no share of answers with a fine mark")
    return Cells(mean, slope, offset, float(fine[0]))


def _spots(arrays: Mapping[str, NDArray[Any]], columns: int) -> Spots:
    """The spots of the code. Raises Invalid (arrays that are not there, or do not fit)."""
    try:
        spots = Spots(*(np.asarray(arrays[f"spots.{part}"], dtype=np.float64) for part in ("mean", "slope")))
    except KeyError as cause:
        raise Invalid(f"{PROBES} of the report lacks {cause}") from cause
    if spots.mean.shape != (columns,) or spots.slope.ndim != 2 or not 0 < spots.slope.shape[1] <= COORDINATES:
        raise Invalid(f"the spots in {PROBES} of the report do not fit its probes")
    if len(spots.slope) != columns:
        raise Invalid(f"the spots in {PROBES} of the report do not fit its probes")
    return spots


def _fixed(case: Case, cells: Cells, spots: Spots) -> Fixed | None:
    """What the log says of cells and spots, and of what else a trace goes by; None where the report has no proof. Raises
    NotTrusted."""
    said, root = case.said, case.root
    if CODE not in said.files:
        return None
    proof, _ = check_proof(case.file(CODE), root.releases_log, root.releases_origin)
    statement, _ = case.signatories.check(parse_envelope(proof.entry), proof.index)
    known = predicate_of(statement, Profile)
    if known.release != said.release or known.code != code_digest(cells, spots):
        raise NotTrusted(f"entry {proof.index} of the log does not say that these are the cells and spots of {said.release}")
    return Fixed(proof.index, statement.subject[0], known.trace)


def _asked_again(case: Case, heard: Heard, name: str) -> list[Found]:
    """What the suspect and the model answer now, where the reader has them. Raises NotTrusted: not as the report says."""
    found, reader, model = [], case.reader, case.model.digest
    if reader.suspect is not None:
        now, _ = filled(heard.clean, np.asarray(reader.suspect(heard.x), dtype=np.float64))
        if not _same(now, heard.read):
            raise NotTrusted(
                f"the suspect does not answer as {name} of the report says: the report is wrong, or the suspect was changed"
            )
        found.append(Found("suspect", f"asked again, it answers the {len(now)} rows of {name} as the report says"))
    if reader.model is not None:
        if reader.model_digest != model:
            raise NotTrusted(f"the model that was shown is {reader.model_digest}, and the report is about {model}")
        now = np.asarray(reader.model(heard.x), dtype=np.float64)
        if not _same(now, heard.clean):
            raise NotTrusted(f"the model that was shown does not answer as {name} of the report says")
        found.append(Found("model", f"asked again, it answers the {len(now)} rows of {name} as the report says"))
    return found


def _same(now: Floats, then: Floats) -> bool:
    return now.shape == then.shape and bool(np.isfinite(now).all()) and np.abs(now - then).max(initial=0.0) <= 1e-4


def _key(one: Accused) -> bytes:
    try:
        key = bytes.fromhex(one.key)
    except ValueError as cause:
        raise NotTrusted(f"the opened key of {one.subject} is not hex") from cause
    if len(key) != 32:
        raise NotTrusted(f"the opened key of {one.subject} has {len(key)} bytes, not 32")
    return key


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    try:
        return files[name]
    except KeyError:
        raise Invalid(f"the report has no {name}") from None


def _shown(files: Mapping[str, bytes], name: str) -> _Shown:
    arrays = load(_file(files, name))
    return _Shown(_arrays(arrays, "", name), arrays)


def _arrays(arrays: Mapping[str, NDArray[Any]], prefix: str, name: str) -> Heard:
    try:
        x, clean, read = (np.asarray(arrays[prefix + part], dtype=np.float64) for part in ("x", "clean", "read"))
    except KeyError as cause:
        raise Invalid(f"{name} of the report lacks {cause}") from cause
    if x.ndim != 2 or clean.ndim != 2 or clean.shape != read.shape or len(x) != len(clean):
        raise Invalid(f"the arrays of {name} of the report do not fit together")
    if not all(np.isfinite(part).all() for part in (x, clean, read)):
        raise Invalid(f"{name} of the report holds numbers that are not finite")
    if any((part < 0.0).any() or (part > 1.0).any() for part in (clean, read)):
        raise Invalid(f"{name} of the report holds answers that are no probabilities")
    return Heard(x, clean, read)
