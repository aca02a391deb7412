"""Have the releases log witnessed: ask each witness of the policy to cosign the newest checkpoint, and keep what they give.

The append has happened before this begins and stands whatever comes of it: a witness that is late only delays when an entry
counts as witnessed. What a witness contradicts is told apart from what it merely cannot do now.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from modelkeep.core.ports import Change, Clock, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.crypto.notes import NoteVerifier, SignatureLine, split_note
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.cosigned import cosigners, keep_cosignatures
from modelkeep.ledger.log import LogView
from modelkeep.ledger.proofs import Continuation
from modelkeep.ledger.quorum import LogPolicy, Witness
from modelkeep.ledger.tiles import TileFiles
from modelkeep.ledger.witness import Objection, Refusal, hear, parse_answer

WITNESS = "witness"
"""Record kind: how it stands with one witness; the key is its name in the policy."""
ATTEMPTS = 3
MAX_AT_ONCE = 32
LONGEST_PAUSE = 60.0
"""Seconds that a witness which failed again and again is left alone at most."""


class Calls(Protocol):
    """Requests to witnesses."""

    def add_checkpoint(self, url: str, body: bytes) -> tuple[int, str, bytes]:
        """The answer: status, content type, body. Raises Unavailable (or too slow, or too long), Invalid (the URL)."""
        ...


class Told(msgspec.Struct, frozen=True):
    """How it stands with a witness. ``size``, ``at``: of its last cosignature, in entries and Unix nanoseconds.

    ``problem``: why it did not cosign the newest checkpoint, "" = it did; ``contradicts``: because this log is not what it saw.
    """

    size: int = 0
    at: int = 0
    problem: str = ""
    contradicts: bool = False


class _Answer(NamedTuple):
    """What became of asking one witness. ``ahead``: the size that it has seen and this log, when asked, did not have."""

    told: Told
    line: SignatureLine | None = None
    ahead: int = 0


@dataclass
class Cosigning:
    """Asks witnesses of one log. One round at a time.

    Its first round asks all of them, also those that have cosigned the newest checkpoint here: only they know whether it is the
    newest, or the keep was put back to an old copy.
    """

    files: TileFiles
    vkey: str
    records: Records
    calls: Calls
    clock: Clock
    _pauses: dict[str, tuple[float, float]] = field(default_factory=dict)
    _heard: set[str] = field(default_factory=set)

    def round(self, view: LogView, policy: LogPolicy) -> dict[str, Told]:
        """Ask every witness that has not cosigned the newest checkpoint, at once; how it stands with each of the policy.

        Raises NotTrusted (the log, or a record, is damaged), Invalid (the policy is for other logs), Missing, Unavailable.
        """
        policy.check_for(self.vkey)
        view.refresh()
        note, plain = view.note, self._plain(view.note)
        before = {witness.name: read_told(self.records, witness.name) for witness in policy.witnesses}
        there = cosigners(note, policy)
        done = self._heard.intersection(there)
        asked = [witness for witness in policy.witnesses if witness.name not in done and self._may_ask(witness)]
        if not asked:
            return before
        with ThreadPoolExecutor(min(len(asked), MAX_AT_ONCE)) as pool:
            answers = dict(zip(asked, pool.map(lambda one: self._ask(one, view, plain, before[one.name]), asked), strict=True))
        keep_cosignatures(self.files, self.vkey, policy, note, [found.line for found in answers.values() if found.line])
        view.refresh()
        now = before | {witness.name: _judged(answer, view) for witness, answer in answers.items()}
        self._heard.update(witness.name for witness, answer in answers.items() if answer.line)
        for witness in asked:
            self._pause(witness, bool(now[witness.name].problem))
        self._keep(before, now)
        return now

    def _ask(self, witness: Witness, view: LogView, note: bytes, told: Told) -> _Answer:
        if not witness.url:
            return _Answer(_problem(told, "the policy names no address for it"))
        checkpoint = view.checkpoint
        old = told.size if 0 <= told.size <= checkpoint.size else 0
        for _ in range(ATTEMPTS):
            try:
                proof = view.consistency(old, checkpoint.size) if 0 < old < checkpoint.size else []
                answer = parse_answer(*self.calls.add_checkpoint(witness.url, Continuation(old, tuple(proof), note).encode()))
                if not isinstance(answer, Refusal):
                    return _taken(witness, note, answer, checkpoint.size)
            except (NotTrusted, Unavailable, Invalid) as cause:
                return _Answer(_problem(told, str(cause)))
            if answer.objection is not Objection.STALE:
                return _Answer(_refused(told, answer))
            if answer.size > checkpoint.size:
                return _Answer(_ahead(told, answer.size, checkpoint.size), ahead=answer.size)
            old = answer.size
        return _Answer(_problem(told, "it keeps changing its mind about what it has seen"))

    def _plain(self, note: bytes) -> bytes:
        """``note`` with the log's own signature only: what witnesses said is of no use to others. Raises NotTrusted."""
        verifier = NoteVerifier.parse(self.vkey)
        heard = hear(note, {verifier.name: [verifier]})
        if isinstance(heard, Refusal):
            raise NotTrusted(f"the checkpoint of {verifier.name} cannot be shown to witnesses: {heard.why}")
        return heard.text.encode() + b"\n" + b"".join(line.encode() for line in heard.lines)

    def _may_ask(self, witness: Witness) -> bool:
        return self.clock.monotonic() >= self._pauses.get(witness.name, (0.0, 0.0))[1]

    def _pause(self, witness: Witness, failed: bool) -> None:
        """Leave a witness alone for a while that doubles with every failure in a row."""
        if not failed:
            self._pauses.pop(witness.name, None)
            return
        length = min(LONGEST_PAUSE, 2 * self._pauses.get(witness.name, (0.5, 0.0))[0])
        self._pauses[witness.name] = length, self.clock.monotonic() + length

    def _keep(self, before: dict[str, Told], now: dict[str, Told]) -> None:
        for name, told in now.items():
            if told == before[name]:
                continue
            try:
                revision = self.records.get(WITNESS, name).revision
            except Missing:
                revision = 0
            try:
                self.records.commit([Change(WITNESS, name, to_json(told), revision)])
            except Conflict:  # another process keeps what it was told at this moment
                continue


def read_told(records: Records, name: str) -> Told:
    """How it stood with the witness ``name`` when it was last asked. Raises NotTrusted (the record is damaged), Unavailable."""
    try:
        return parse_record(records.get(WITNESS, name), Told, f"the witness {name[:80]}")
    except Missing:
        return Told(problem="it was not asked yet")


def _taken(witness: Witness, note: bytes, lines: Iterable[SignatureLine], size: int) -> _Answer:
    """The cosignature of this witness among the lines it gave. Raises NotTrusted."""
    text, _ = split_note(note)
    for line in lines:
        if witness.verifier.made(line):
            return _Answer(Told(size, witness.verifier.check(text, line) * 10**9), line)
    raise NotTrusted(f"it signs with another key than that of {witness.verifier.name} in the policy")


def _refused(told: Told, refusal: Refusal) -> Told:
    if refusal.objection in (Objection.FORK, Objection.BAD_PROOF):
        return _contradiction(told, "this log does not continue what the witness cosigned")
    words = {
        Objection.UNKNOWN_LOG: "it does not know this log: give its operator the log's verifier key",
        Objection.NOT_SIGNED: "it knows another key of this log: give its operator the log's verifier key",
    }
    return _problem(told, words.get(refusal.objection, f"it refused the request: {refusal.why}"))


def _ahead(told: Told, said: int, size: int) -> Told:
    return _contradiction(told, f"the witness cosigned {said} entries of this log, which has {size}")


def _contradiction(told: Told, what: str) -> Told:
    problem = f"witness refuses: fork or rollback: {what} (it was rewritten, or restored from an old copy)"
    return msgspec.structs.replace(told, problem=problem, contradicts=True)


def _problem(told: Told, what: str) -> Told:
    return msgspec.structs.replace(told, problem=what, contradicts=False)


def _judged(answer: _Answer, view: LogView) -> Told:
    """A witness that has seen more than this process had: another writer was faster, or the log was rolled back."""
    if answer.ahead and answer.ahead <= view.checkpoint.size:
        return _problem(answer.told, "the log grew while it was asked: it is asked again")
    return answer.told
