"""The parts around the hot path: what is admitted, what waits for the evidence, whose key seals a record."""

import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.epochs import epoch_key, never_erased
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.kdf import hkdf
from modelkeep.crypto.notes import NoteSigner
from modelkeep.crypto.wrap import Sealer, unwrap_key, wrap_key
from modelkeep.custody.evidence import Committed
from modelkeep.errors import Invalid, Missing, NotAdmitted, NotTrusted, OverBudget, Quarantined, Unavailable
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT, LABEL_ONLY, Rung
from modelkeep.extraction.perturb import commitment
from modelkeep.extraction.verdicts import Terms
from modelkeep.serving.audit import AuditEntry, AuditLog, read_bodies
from modelkeep.serving.bodies import SubjectKeys, body_context, decode_body, encode_body, open_body
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.admitted import NOTHING, Admitted
from modelkeep.workflows.evidence import AuditFolder, History, Position
from modelkeep.workflows.marks import EpochKey, Marks, account_key, next_marks
from modelkeep.workflows.moves import RUNG, Moves, open_move
from modelkeep.workflows.watch import Agreed, Calibrated, Cleared, Observation, Ruled, Today, Watch, Watchers

ONE, TWO = ReleaseRef("m", 1), ReleaseRef("m", 2)


class Seen:
    """A guard's verdict."""

    rung = Rung.MARK


class Ledger:
    """The part of ``Guard`` that a watch uses, which writes down what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self.fail = False

    def withheld(self) -> list[str]:
        return []

    def alarmed(self) -> list[str]:
        return []

    def touched(self) -> set[str]:
        return set()

    def observe_many(self, subjects, x, probs, covariates, *, hidden) -> None:
        if self.fail:
            raise Invalid("evidence needs finite inputs")
        assert hidden is None
        assert len(subjects) == len(x) == len(probs) == len(covariates)
        self.covariates = covariates
        self.rows += list(zip(subjects, x[:, 0].tolist(), strict=True))

    def verdict(self, _subject) -> Seen:
        return Seen()

    def clear(self, subject) -> None:
        self.rows.append((subject, -1.0))

    def subjects(self) -> list[str]:
        return sorted({subject for subject, _ in self.rows})


def answer(at: int, subject: str, *values: float) -> Observation:
    x = np.array(values, np.float32)[:, None]
    return Observation(at, subject, x, np.full((len(x), 2), 0.5))


def test_covariates_of_account_and_request_stand_beside_every_row():
    ledger = Ledger()
    watch = Watch(ledger, known=lambda subject: ("signup",) if subject == "a" else ())
    watch.replay([msgspec.structs.replace(answer(0, "a", 1.0, 2.0), covariates=("net",)), answer(1, "b", 3.0)])
    assert ledger.covariates == [("signup", "net"), ("signup", "net"), ()]


def test_what_is_observed_comes_in_the_order_of_the_log():
    ledger = Ledger()
    watch = Watch(ledger)
    for at, subject, value in ((3, "b", 3.0), (1, "a", 1.0), (2, "a", 2.0)):
        watch.submit(answer(at, subject, value))
    watch.submit(answer(4, "b", 4.0, 5.0))
    assert watch.work() == {"a": 2, "b": 3} and watch.work() == {}
    assert ledger.rows == [("a", 1.0), ("a", 2.0), ("b", 3.0), ("b", 4.0), ("b", 5.0)]


def test_a_review_takes_effect_after_what_was_asked_before_it_and_once():
    ledger = Ledger()
    watch = Watch(ledger)
    watch.submit(answer(1, "a", 1.0, 2.0))
    watch.clear("a", 50)
    watch.clear("a", 50)
    watch.submit(answer(2, "a", 3.0))
    assert watch.work() == {"a": 3} and watch.work() == {}
    assert ledger.rows == [("a", 1.0), ("a", 2.0), ("a", -1.0), ("a", 3.0)]


def test_a_replay_takes_reviews_at_their_place():
    ledger = Ledger()
    watch = Watch(ledger)
    assert watch.replay([answer(1, "a", 1.0), answer(2, "b", 2.0), Cleared("a", 5), answer(3, "a", 3.0), Cleared("a", 5)]) == 3
    assert ledger.rows == [("a", 1.0), ("b", 2.0), ("a", -1.0), ("a", 3.0)]


class Tick(SystemClock):
    """A clock whose time of day is set by hand."""

    def __init__(self) -> None:
        self.wall = 0

    def now_ns(self) -> int:
        return self.wall


def test_histories_of_gateways_that_ran_at_once_are_told_in_order_with_the_reviews(tmp_path):
    clock, keys, logs = Tick(), SubjectKeys(MemoryRecords(), Kek(), SystemEntropy()), {}

    def begin(name: str) -> None:
        clock.wall += 1
        origin = f"keep.example/audit/{name}"
        (tmp_path / name).mkdir()
        signer = NoteSigner(origin, b"\x05" * 32)
        logs[name] = (AuditLog(FolderLogFiles(tmp_path / name), signer, origin, clock), signer.vkey, origin)

    def ask(name: str, subject: str, value: float, at: int) -> None:
        clock.wall = at
        x, told = np.array([[value]], np.float32), threading.Event()
        network = bytes(7) + bytes([at]) if at < 45 else b""
        plain = encode_body(x, np.full((1, 2), 0.5), np.full((1, 2), 0.5).tobytes(), b"", Rung.MARK, network)
        entry = AuditEntry(kind="predict", subject=subject, release=str(ONE), request="", outcome="ok")
        keys.key(subject)
        sealed = keys.sealer(subject, str(ONE)).seal(plain)
        logs[name][0].submit(entry, sealed, lambda _index: told.set())
        assert told.wait(5)

    begin("1")
    ask("1", "a", 1.0, at=10)
    begin("2")
    for name, subject, value, at in (("2", "a", 2.0, 20), ("1", "b", 3.0, 30), ("2", "a", 4.0, 40), ("1", "a", 5.0, 50)):
        ask(name, subject, value, at)
    for log, _, _ in logs.values():
        log.stop()
    begin("3")
    ask("3", "b", 6.0, at=60)
    logs["3"][0].stop()
    folders = [AuditFolder(FolderLogFiles(tmp_path / name), vkey, origin) for name, (_, vkey, origin) in logs.items()]
    reviews = {"a": (25, 35, 70), "b": (5,), "nobody": (1,)}
    told = [
        (event.subject, event.at) if isinstance(event, Cleared) else (event.subject, float(event.x[0, 0]))
        for event in History(lambda: folders, keys, lambda subject: reviews.get(subject, ())).of(ONE)
    ]
    first = [("a", 1.0), ("a", 2.0), ("b", 5), ("a", 25), ("b", 3.0), ("a", 35)]
    assert told == [*first, ("a", 4.0), ("a", 5.0), ("b", 6.0), ("a", 70)]
    calibrations = [Calibrated(ONE, at, (0.5,)) for at in (25, 45, 90)]
    timed = History(lambda: folders, keys, calibrations=lambda _ref: calibrations).of(ONE)
    assert [event.at if isinstance(event, Calibrated) else float(event.x[0, 0]) for event in timed] == [
        *(1.0, 2.0, 25, 3.0, 4.0, 45, 5.0, 6.0, 90)
    ]
    day = 86_400_000_000_000
    ruled = [Ruled(0, DEFAULT), Ruled(45, LABEL_ONLY), Ruled(3 * day, DEFAULT)]
    told = list(History(lambda: folders, keys, ladders=lambda: ruled).of(ONE))
    rows = [float(event.x[0, 0]) if isinstance(event, Observation) else event for event in told]
    assert rows == [DEFAULT, 1.0, 2.0, 3.0, 4.0, LABEL_ONLY, 5.0, 6.0, Today(3), DEFAULT]
    cases = [Cleared("net-0000000000000014", 5), Cleared("net-0000000000000014", 45), Cleared("net-0000000000000014", 99)]
    told = list(History(lambda: folders, keys, cases=lambda: cases).of(ONE))
    shared = ["net-000000000000000a", "net-0000000000000014", "net-000000000000001e", "net-0000000000000028"]
    assert [event.at if isinstance(event, Cleared) else event.covariates for event in told] == [
        *(5, *((one,) for one in shared), 45, (), (), 99)
    ]
    unnamed = History(lambda: folders, keys, networks=False).of(ONE)
    assert {event.covariates for event in unnamed} == {()}
    history = History(lambda: folders, keys)
    whole = [one for one in history.of(ONE) if isinstance(one, Observation)]
    sizes = {one.instance: one.size for one in history.later(ONE, {}) if isinstance(one, Position)}
    assert set(sizes) == {"1", "2", "3"}
    for first_of_one in range(sizes["1"] + 1):  # what is left of a log that was taken in up to there
        taken = {"1": first_of_one, "2": 2, "3": sizes["3"]}
        left = list(history.later(ONE, taken))
        expected = [(one.instance, one.at, one.subject) for one in whole if one.at >= taken[one.instance]]
        found = [(one.instance, one.at, one.subject) for one in left if isinstance(one, Observation)]
        assert found == sorted(expected)
        assert {one.instance: one.size for one in left if isinstance(one, Position)} == {
            name: size for name, size in sizes.items() if taken[name] < size
        }


def test_nobody_runs_ahead_of_his_evidence():
    watch = Watch(Ledger(), max_rows_behind=10)
    watch.reserve("a", 6)
    with pytest.raises(OverBudget) as refusal:
        watch.reserve("a", 5)
    assert 0 < refusal.value.retry_after < 1
    watch.reserve("b", 8)
    watch.release("a", 6)
    watch.reserve("a", 50)  # a batch larger than the bound passes alone
    assert watch.rows_behind() == 58


def test_evidence_with_a_hole_serves_nobody():
    ledger, settled = Ledger(), []
    broken, sound = Watch(ledger), Watch(Ledger())
    ledger.fail = True
    watchers = Watchers(lambda: [broken, sound], settled.extend, every=0.01)
    broken.submit(answer(0, "a", 1.0))
    sound.submit(answer(0, "b", 1.0))
    watchers.start()
    watchers.stop()
    assert settled == [(sound, {"b": 1})] and sound.rung("b") is Rung.MARK
    with pytest.raises(Unavailable, match="restart"):
        broken.rung("a")


def test_what_is_admitted_and_why_not():
    here = Admitted({}, {}, {ONE: Quarantined("locked"), TWO: NotAdmitted("not promoted")}, until=10.0)
    for version, expected in ((1, Quarantined), (2, NotAdmitted), (None, NotAdmitted), (3, Missing)):
        with pytest.raises(expected):
            here.find("m", version, 9.0)
    with pytest.raises(Missing):
        here.find("other", None, 9.0)
    for late in (here, NOTHING):
        with pytest.raises(Unavailable):
            late.find("m", None, 10.1)


def test_a_refusal_is_a_fresh_exception_every_time():
    here = Admitted({}, {}, {ONE: Quarantined("locked")}, until=10.0)
    found = []
    for _ in range(2):
        with pytest.raises(Quarantined) as refusal:
            here.find("m", 1, 0.0)
        found.append(refusal.value)
    assert found[0] is not found[1]


def test_a_mark_is_used_only_once_it_is_committed():
    master = bytes(32)
    key = account_key(master, "sub_a", ONE)
    assert key != account_key(master, "sub_a", TWO) != account_key(master, "sub_b", TWO)
    logged: dict = {}
    marks = Marks(master, lambda subject, ref: logged.get((subject, ref), ()))
    with pytest.raises(Unavailable):
        marks.key("sub_a", ONE)
    assert marks.epoch("sub_a", ONE) == -1
    logged["sub_a", ONE] = (Committed(commitment(key).hex(), 7, 1),)
    assert marks.key("sub_a", ONE) == EpochKey(0, key) and marks.epoch("sub_a", ONE) == 0
    (entry,) = next_marks(master, ONE, ["sub_a", "sub_b"], marks._logged)
    assert (entry.subject, entry.epoch) == ("sub_a", 1), "who has no first key gets no second one"
    assert next_marks(master, ONE, ["sub_a"], marks._logged, before=1) == []
    assert next_marks(master, ONE, ["sub_a"], marks._logged, before=2) == [entry]
    logged["sub_a", ONE] += (Committed(entry.commitment, 9, 2),)
    later = account_key(master, "sub_a", ONE, 1)
    assert marks.key("sub_a", ONE) == EpochKey(1, later) and marks.epoch("sub_a", ONE) == 1
    assert len({key, later, account_key(master, "sub_a", ONE, 2), account_key(master, "sub_a", TWO, 1)}) == 4
    logged["sub_a", ONE] = (Committed(commitment(key).hex(), 7, 1), Committed("00" * 32, 9, 2))
    with pytest.raises(NotTrusted):
        marks.key("sub_a", ONE)


def test_keys_of_the_first_epoch_are_those_of_before_there_were_epochs():
    """What older logs commit to and older reports open."""
    before = hkdf(bytes(32), salt=b"", info=b"modelkeep/account-mark/1\0sub_a\0m@1")
    assert account_key(bytes(32), "sub_a", ONE) == before


def test_the_record_of_an_answer_says_the_epoch_of_its_mark():
    x = np.zeros((1, 2), np.float32)
    plain = encode_body(x, None, b"", b"{}", 0, epoch=3)
    assert decode_body(plain).epoch == 3
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(plain)[:-1])
    assert decode_body(older).epoch == 0


class Kek:
    """A wrapping key of one version, and its ``Wrapper``."""

    key_id = "test/1"

    def wrapper(self):
        return self

    def opens(self, key_id):
        return self if key_id == self.key_id else None

    def wrap(self, key: bytes, context: bytes) -> bytes:
        return wrap_key(bytes(32), key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return unwrap_key(bytes(32), wrapped, context)


def test_subject_keys_are_made_once_and_stay_erased_when_their_record_comes_back():
    records, epochs = MemoryRecords(), {}
    one, two = (SubjectKeys(records, Kek(), SystemEntropy(), lambda name: epochs.get(name, 0)) for _ in range(2))
    with pytest.raises(Missing):
        one.existing("sub_a")
    assert one.cached("sub_a") is None
    before = one.key("sub_a")
    assert before == two.key("sub_a") == one.cached("sub_a") != one.key("sub_b")
    plain = encode_body(np.zeros((1, 2), np.float32), None, b"", b"{}", 0)
    sealed = one.sealer("sub_a", "m@1").seal(plain)
    assert one.open(sealed, "sub_a", "m@1").rows == 1
    kept = records.get("audit-key", "sub_a")
    epochs["sub_a"] = 7  # the log says so; the record is still there
    assert one.cached("sub_a") is None
    with pytest.raises(Missing):
        one.existing("sub_a")
    with pytest.raises(Missing):
        one.open(sealed, "sub_a", "m@1")
    assert one.key("sub_a") == two.key("sub_a") not in (before, one.key("sub_b"))
    with pytest.raises(Missing):  # the account goes on, and what it asked before stays unreadable
        one.open(sealed, "sub_a", "m@1")
    records.commit([Change("audit-key", epoch_key("sub_a", 7), kept.body)])  # the old key where the new one belongs
    with pytest.raises(NotTrusted):
        SubjectKeys(records, Kek(), SystemEntropy(), lambda name: epochs.get(name, 0)).existing("sub_a")


def test_a_body_that_does_not_open_is_damage_unless_its_subject_was_erased():
    keys = SubjectKeys(MemoryRecords(), Kek(), SystemEntropy())
    plain = encode_body(np.zeros((1, 2), np.float32), None, b"", b"{}", 0)
    keys.key("sub_a")
    with pytest.raises(NotTrusted):
        keys.open(Sealer(bytes(32), body_context("sub_a", "m@1")).seal(plain), "sub_a", "m@1")


def test_a_key_of_one_subject_does_not_pass_for_another():
    records = MemoryRecords()
    keys = SubjectKeys(records, Kek(), SystemEntropy())
    keys.key("sub_a")
    stolen = records.get("audit-key", "sub_a").body
    records.commit([Change("audit-key", "sub_b", stolen)])
    with pytest.raises(NotTrusted):
        keys.key("sub_b")


shapes = st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 4))


@settings(max_examples=60)
@given(shapes, st.booleans(), st.integers(0, 2**32 - 1))
def test_bodies_come_back_as_they_went(shape, wide, seed):
    rows, features, classes = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(np.float64 if wide else np.float32)
    raw, served = rng.random((2, rows, classes))
    key = rng.bytes(32)
    sealed = Sealer(key, body_context("sub_a", "m@1")).seal(encode_body(x, raw, served.tobytes(), b"{}", 1))
    body = open_body(key, sealed, "sub_a", "m@1")
    assert np.array_equal(body.inputs(), x) and np.array_equal(body.raw_probs(), raw)
    assert np.array_equal(body.served_probs(), served) and (body.outputs, body.rung) == (b"{}", 1)
    for subject, release, data in (("sub_b", "m@1", sealed), ("sub_a", "m@2", sealed), ("sub_a", "m@1", sealed[:-1] + b"\0\0")):
        with pytest.raises(NotTrusted):
            open_body(key, data, subject, release)


def test_what_somebody_wrote_over_a_stored_rung_goes_into_no_record(tmp_path):
    records, signer = MemoryRecords(), NoteSigner("keep.example/audit/1", b"\x05" * 32)
    files, keys = FolderLogFiles(tmp_path), SubjectKeys(records, Kek(), SystemEntropy())
    log = AuditLog(files, signer, "keep.example/audit/1", SystemClock())
    rows = np.random.default_rng(1).normal(size=(240, 4))
    watch = Watch(Guard(fit_profile(rows, lambda x: np.stack([x[:, 0] > 0, x[:, 0] <= 0], axis=1) * 1.0, seed=1)))
    moves = Moves(records, keys, lambda: {ONE: watch}, AuditSeries(lambda: ("1", log), SystemClock()), never_erased)
    records.commit([Change(RUNG, "m@1/sub_a", b"\x1b[2J" + b"alarm" * 10_000, 0)])
    watch.take(Agreed("sub_a", Terms(sanctioned=True)))
    moves.look()
    log.stop()
    told = read_bodies(files, signer.vkey, "keep.example/audit/1")
    [(entry, sealed)] = [(entry, sealed) for _, entry, sealed in told if entry.kind == RUNG]
    move = open_move(keys.key("sub_a"), sealed, "sub_a", "m@1")
    assert (entry.outcome, move.before, move.after) == ("sanction", "unknown", "sanction")
    assert records.get(RUNG, "m@1/sub_a").body == b"sanction"
