"""The evidence book: what counts, what does not, and that nothing but the log is ever asked."""

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.values import ModelSignature, ReleaseRef, ReleaseState, Resource, Statement, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.admission import admit, attributes
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.releases import TRANSITIONS, VERBS, SealedBody
from modelkeep.custody.scan import RULES_VERSION, ScanVerdict
from modelkeep.custody.signing import ReleaseFacts, SealedProfile, release_statements, state_statement
from modelkeep.custody.trust import TrustedIdentity, TrustRoot
from modelkeep.errors import Conflict, Invalid, Missing, NotAdmitted, NotTrusted, Quarantined
from modelkeep.ledger import predicates as p
from modelkeep.ledger import statements as s
from modelkeep.ledger.attestations import Vulnerabilities
from modelkeep.policy.admission import AdmissionPolicy

KEEP = StatementSigner("keep/statement-signing/1", bytes(32), bytes(32))
SCANNER = StatementSigner("scanner", bytes([1]) * 32, bytes([1]) * 32)
STRANGER = StatementSigner("keep/statement-signing/1", bytes([9]) * 32, bytes([9]) * 32)  # our name, their keys
TRUST = TrustRoot(
    "keep", "vkey", bytes(32), bytes(32), (TrustedIdentity(KEEP.public), TrustedIdentity(SCANNER.public, ("scan",), first=2))
)
REF = ReleaseRef("m", 1)
MODEL, EVIL = digest_of(b"model"), digest_of(b"evil")
PLAIN = Resource("m.onnx", MODEL)


def body(name, root="ab"):
    return SealedBody(digest_of(name), root * 32, "cd" * 32, 100)


def facts(ref=REF, model=MODEL, clean=True, profile=True, sealed=b"body"):
    verdict = ScanVerdict(clean, "onnx", ())
    about = SealedProfile(body(b"profile"), digest_of(b"plain profile"), 200, digest_of(b"ref")) if profile else None
    return ReleaseFacts(ref, model, "m.onnx", 90, verdict, body(sealed), about, "ada", 1)


class Log:
    """A list of entries that the book follows, as if proven."""

    def __init__(self, trust=TRUST):
        self.list, self.book = [], EvidenceBook(trust)

    def entries(self, start, end):
        return self.list[start:end]

    def add(self, *statements, signer=KEEP):
        return self.add_raw(*(s.sign_statement(statement, signer) for statement in statements))

    def add_raw(self, *entries):
        self.list += entries
        self.book.catch_up(self, len(self.list))
        return self

    def state(self, verb, ref=REF, model=MODEL, nonce=None, signer=KEEP, reason=""):
        nonce = len(self.list).to_bytes(16) if nonce is None else nonce
        return self.add(
            state_statement(Resource("m", model), ref, verb, actor="bo", at=2, nonce=nonce, reason=reason), signer=signer
        )

    @property
    def why(self):
        return [problem.why for problem in self.book.problems]


@pytest.fixture
def log():
    return Log().add(*release_statements(facts()))


def test_a_release_and_its_evidence(log):
    found = log.book.release(REF)
    assert (found.state, found.model, found.body, found.profile_body) == (
        ReleaseState.PUBLISHED,
        MODEL,
        body(b"body"),
        body(b"profile"),
    )
    assert found.entries == {"scan": 0, "sealing": 1, "profile": 2, "release": 3}
    assert (found.index, found.signer, found.format, found.size) == (3, KEEP.name, "onnx", 90)
    assert found.profile_digest == digest_of(b"plain profile")
    assert [found] == list(log.book.releases())
    assert (log.book.last_version("m"), log.book.last_version("n"), log.book.size) == (1, 0, 4)
    assert log.why == []


def test_states_follow_the_log(log):
    road = {"promote": "promoted", "quarantine": "quarantined", "reinstate": "published", "retire": "retired"}
    for verb, state in road.items():
        assert log.state(verb).book.release(REF).state == state
    assert [event.verb for event in log.book.release(REF).history] == ["publish", *road]


def test_what_may_be_served(log):
    standard = AdmissionPolicy.profile("standard")
    with pytest.raises(NotAdmitted, match="promote it"):
        admit(log.book, REF, standard.decide)
    admission = admit(log.state("promote").book, REF, standard.decide)
    assert admission.evidence.ref == REF
    assert admission.reasons
    with pytest.raises(Quarantined, match="entry 5"):
        admit(log.state("quarantine", reason="tampered blob").book, REF, standard.decide)


def test_the_standard_policy_wants_a_clean_scan():
    found = Log().add(*release_statements(facts(clean=False))).state("promote").book
    with pytest.raises(NotAdmitted):
        admit(found, REF, AdmissionPolicy.profile("standard").decide)


def test_attributes_are_plain_values(log):
    assert attributes(log.book, REF) == {
        "name": "m", "version": 1, "state": "published", "format": "onnx", "signer": KEEP.name, "custody": "sealed",
        "logged": True, "witnesses": 0,
        "scanned": True, "scan_clean": True, "scanner": f"modelkeep/{RULES_VERSION}", "profile": True, "size": 90,
        "owner": "", "classification": "", "tags": [], "approvals": 0, "rejections": 0,
        "trained": False, "code_commit": "", "code_clean": False, "code_signed": False, "isolated": False,
        "accuracy": "0.0000", "hardened": False, "robust_accuracy": "0.0000", "robust_alarms": 0,
        "robust_linf": "0.0000", "robust_l2": "0.0000", "robust_white_box": False,
        "private": False, "epsilon": "922337203685477.0000", "delta_ppb": 10**9, "watermark": False, "marked": False,
        "dataset_epsilon": "922337203685477.0000",
        "bom": False, "audited": False, "unaudited": 0, "critical": 0, "high": 0, "ungraded": 0, "snapshot_age_days": 0,
    }  # fmt: skip


def test_a_statement_that_looked_nothing_up_is_no_audit(log):
    for audited in (0, 1):
        said = Vulnerabilities(
            actor="bo", at=2, source="OSV", snapshot=digest_of(b"s"), snapshot_at=1, lock=digest_of(b""), audited=audited,
            unaudited=(), advisories=(),
        )  # fmt: skip
        log.add(s.make_statement(said, Resource("m", MODEL)))
        assert attributes(log.book, REF)["audited"] is bool(audited)


def stripped(statement, index):
    envelope = msgspec.json.decode(s.sign_statement(statement, KEEP))
    del envelope["signatures"][index]
    return msgspec.json.encode(envelope)


PROMOTE = state_statement(PLAIN, REF, "promote", actor="eve", at=3, nonce=bytes(16), reason="")
FORGERIES = {
    "another's keys under our name": s.sign_statement(PROMOTE, STRANGER),
    "an identity that may only sign scans": s.sign_statement(PROMOTE, SCANNER),
    "without the Ed25519 signature": stripped(PROMOTE, 0),
    "without the ML-DSA signature": stripped(PROMOTE, 1),
    "about another model": s.sign_statement(
        state_statement(Resource("m", EVIL), REF, "promote", actor="e", at=3, nonce=bytes(16), reason=""), KEEP
    ),
    "of a release that does not exist": s.sign_statement(
        state_statement(PLAIN, ReleaseRef("m", 2), "promote", actor="e", at=3, nonce=bytes(16), reason=""), KEEP
    ),
    "with a verb of its own": s.sign_statement(
        state_statement(PLAIN, REF, "publish", actor="e", at=3, nonce=bytes(16), reason=""), KEEP
    ),
    "with another shape": s.sign_statement(Statement((PLAIN,), p.State.TYPE, {"verb": "promote", "release": "m@1"}), KEEP),
    "with three subjects": s.sign_statement(msgspec.structs.replace(PROMOTE, subject=(PLAIN, PLAIN, PLAIN)), KEEP),
    "not an envelope": b"promote m@1 please",
    "empty": b"",
}


@pytest.mark.parametrize("entry", FORGERIES.values(), ids=FORGERIES.keys())
def test_forgeries_count_for_nothing_and_stop_nothing(log, entry):
    log.add_raw(entry)
    assert log.book.release(REF).state is ReleaseState.PUBLISHED
    assert [problem.index for problem in log.book.problems] == [4]
    assert log.state("promote").book.release(REF).state is ReleaseState.PROMOTED


def test_a_copy_of_an_old_statement_counts_for_nothing(log):
    log.state("promote").state("quarantine").state("reinstate")
    log.add_raw(log.list[4])
    assert log.book.release(REF).state is ReleaseState.PUBLISHED
    assert "a copy does not count" in log.why[0]


def test_impossible_changes_count_for_nothing(log):
    log.state("quarantine").state("promote")
    assert log.book.release(REF).state is ReleaseState.QUARANTINED
    assert "reinstate" in log.why[0]


def test_statements_outside_an_identitys_time_count_for_nothing():
    early = Log().add(release_statements(facts())[0], signer=SCANNER)
    assert "not trusted at log index 0" in early.why[0]
    ended = TrustRoot("keep", "v", bytes(32), bytes(32), (TrustedIdentity(KEEP.public, until=4),))
    log = Log(ended).add(*release_statements(facts())).state("promote")
    assert log.book.release(REF).state is ReleaseState.PUBLISHED


def test_another_scanner_may_vouch():
    scan, *rest = release_statements(facts())
    log = Log().add(*release_statements(facts(ReleaseRef("other", 1), sealed=b"x"))).add(scan, signer=SCANNER).add(*rest)
    assert log.book.release(REF).scan is not None


def test_a_release_needs_its_evidence_logged_before():
    scan, sealing, profile, release = release_statements(facts())
    for some, missing in (([scan, profile], "sealing"), ([sealing, profile], "scan"), ([scan, sealing], "profile")):
        log = Log().add(*some, release)
        with pytest.raises(Missing):
            log.book.release(REF)
        assert f"names a {missing} statement that does not stand earlier" in log.why[0]


def test_evidence_about_another_model_does_not_count():
    scan, sealing, profile, _ = release_statements(facts())
    wrong = release_statements(facts(model=EVIL))
    for mixed in ([wrong[0], sealing, profile], [scan, wrong[1], profile], [scan, sealing, wrong[2]]):
        said = p.Release(
            actor="e", at=1, name="m", version=1, filename="m", format="onnx", size=1, interface=ModelSignature((), ()),
            evidence=dict(zip(("scan", "sealing", "profile"), map(s.statement_id, mixed), strict=True)),
        )  # fmt: skip
        log = Log().add(*mixed, s.make_statement(said, PLAIN))
        assert "about another model" in log.why[0]
        assert list(log.book.releases()) == []


def test_evidence_of_another_release_does_not_count():
    other = release_statements(facts(ReleaseRef("m", 7)))
    said = p.Release(
        actor="e", at=1, name="m", version=1, filename="m", format="onnx", size=1, interface=ModelSignature((), ()),
        evidence={"sealing": s.statement_id(other[1])},
    )  # fmt: skip
    assert "is of m@7" in Log().add(*other[:3], s.make_statement(said, PLAIN)).why[0]


def test_a_version_is_released_once(log):
    log.add(*release_statements(facts(model=EVIL, sealed=b"evil")))
    assert log.book.release(REF).model == MODEL
    assert "a version is never reused" in log.why[-1]


def resealing(sealed, replaces, root="ab", model=MODEL):
    b = body(sealed, root)
    said = p.Sealing(
        actor="ada", at=5, release="m@1", sealed=b.sealed, root=b.root, header=b.header, size=b.size, replaces=replaces
    )
    return s.make_statement(said, Resource("m", model))


def profile_again(sealed, replaces, model=MODEL, plain=None):
    b = body(sealed)
    said = p.Profile(
        actor="ada", at=5, release="m@1", sealed=b.sealed, root=b.root, header=b.header, size=b.size, rows=3,
        reference=digest_of(b"ref"), replaces=replaces,
    )  # fmt: skip
    return s.make_statement(said, Resource("m", model), Resource("extraction profile", plain or digest_of(b"plain profile")))


def test_a_later_cipher_suite_has_another_root(log):
    after = log.add(resealing(b"new", digest_of(b"body"), root="00")).book.release(REF)
    assert after.body == body(b"new", "00")


def test_resealing_the_profile_moves_its_body_alone(log):
    before = log.book.release(REF)
    after = log.add(profile_again(b"new", before.profile_body.sealed)).book.release(REF)
    assert after.profile_body == body(b"new")
    assert (after.body, after.profile_digest, after.state) == (before.body, before.profile_digest, before.state)
    assert log.book.bodies()[after.profile_body.sealed] == after.profile_body


def test_resealing_moves_the_body_and_nothing_else(log):
    before = log.state("promote").book.release(REF)
    after = log.add(resealing(b"new", before.body.sealed)).book.release(REF)
    assert after == msgspec.structs.replace(before, body=body(b"new"), entries={**before.entries, "sealing": 5})
    log.add(resealing(b"newer", after.body.sealed))
    for old in (log.list[5], s.sign_statement(resealing(b"body", before.body.sealed), KEEP)):
        log.add_raw(old)  # nobody goes back to an older body
    assert log.book.release(REF).body == body(b"newer")


@pytest.mark.parametrize(
    "statement",
    [
        resealing(b"new", digest_of(b"body"), model=EVIL),
        profile_again(b"new", digest_of(b"profile"), plain=EVIL),
        profile_again(b"new", digest_of(b"profile"), model=EVIL),
        profile_again(b"new", digest_of(b"other")),
        resealing(b"new", ""),
    ],
)
def test_resealing_something_else_counts_for_nothing(log, statement):
    before = log.book.release(REF)
    assert log.add(statement).book.release(REF) == before
    assert len(log.why) == 1


def commit(ref=REF, model=MODEL, epoch=0, **entries):
    said = p.TraceCommitments(
        actor="keep", at=1, release=str(ref), entries=tuple(p.Commitment(k, v * 32, epoch) for k, v in entries.items())
    )
    return s.make_statement(said, Resource("m", model))


def test_commitments_the_first_one_wins(log):
    log.add(commit(sub_1="aa", sub_2="bb"), commit(sub_1="cc", sub_3="dd"))
    assert [said(log, f"sub_{i}") for i in (1, 2, 3, 4)] == [["aa" * 32], ["bb" * 32], ["dd" * 32], []]
    assert log.book.committed("sub_1", ReleaseRef("m", 2)) == ()
    log.add(commit(model=EVIL, sub_9="aa")).add(commit(ref=ReleaseRef("x", 1), sub_9="aa")).add(
        commit(sub_9="aa"), signer=STRANGER
    )
    assert log.book.committed("sub_9", REF) == ()


def said(log, subject):
    return [one.commitment for one in log.book.committed(subject, REF)]


def test_epochs_of_a_key_come_one_after_the_other(log):
    log.add(commit(sub_1="aa"), commit(epoch=1, sub_1="bb"), commit(epoch=1, sub_1="cc"), commit(epoch=0, sub_1="dd"))
    assert said(log, "sub_1") == ["aa" * 32, "bb" * 32] and log.why == []
    log.add(commit(epoch=3, sub_1="ee"), commit(epoch=1, sub_2="ee"))
    assert said(log, "sub_1") == ["aa" * 32, "bb" * 32] and said(log, "sub_2") == []
    assert len(log.why) == 2 and all("comes before the one before it" in why for why in log.why)
    assert log.book.suspicious is None
    log.add(commit(epoch=2, sub_1="ee"))
    assert said(log, "sub_1")[2:] == ["ee" * 32]


def test_other_statements_are_passed_over(log):
    act = s.make_statement(p.Act(actor="ada", at=1, verb="user.add", about="bob"), s.keep_resource("keep"))
    foreign = Statement((PLAIN,), "https://slsa.dev/provenance/v1", {})
    log.add(act, foreign).add(act, signer=STRANGER)
    assert (log.why, log.book.size) == ([], 7)


def test_order_is_kept():
    book = EvidenceBook(TRUST)
    with pytest.raises(Conflict):
        book.apply(1, b"")
    book.apply(0, b"")
    with pytest.raises(Conflict):
        book.apply(0, b"")


def test_a_log_that_shrank(log):
    with pytest.raises(NotTrusted, match="shrank"):
        log.book.catch_up(log, 3)


def test_problems_are_bounded():
    log = Log().add_raw(*[b"junk"] * 1500)
    assert (len(log.book.problems), log.book.problem_count, log.book.size) == (1000, 1500, 1500)


@given(st.lists(st.tuples(st.sampled_from(VERBS), st.booleans()), max_size=8))
@settings(max_examples=25, deadline=None)
def test_the_fold_is_the_table_over_trusted_statements(acts):
    log = Log().add(*release_statements(facts()))
    state = ReleaseState.PUBLISHED
    for verb, trusted in acts:
        log.state(verb, signer=KEEP if trusted else STRANGER)
        state = TRANSITIONS.get((state, verb), state) if trusted else state
    assert log.book.release(REF).state is state


@given(st.integers(0, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_no_flipped_bit_changes_what_is_believed(index, data):
    """An altered entry (by someone who also re-signed the log) is as good as absent."""
    log = Log().add(*release_statements(facts()))
    entry = bytearray(log.list[index])
    entry[data.draw(st.integers(0, len(entry) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    altered = Log().add_raw(*(bytes(entry) if i == index else e for i, e in enumerate(log.list)))
    for found in altered.book.releases():
        assert (found.model, found.body, found.state) == (MODEL, body(b"body"), ReleaseState.PUBLISHED)


def test_following_is_incremental_and_quick(log):
    act = s.sign_statement(s.make_statement(p.Act(actor="a", at=1, verb="v", about="b"), s.keep_resource("keep")), KEEP)
    log.list += [act] * 2000
    start = time.process_time()
    log.book.catch_up(log, len(log.list))
    assert time.process_time() - start < 1.0  # about 20 microseconds each on a small machine
    assert log.book.catch_up(log, len(log.list)) == 0


def test_a_state_change_needs_its_nonce():
    for nonce, reason in ((b"", ""), (bytes(16), "x" * 2001)):
        with pytest.raises(Invalid):
            state_statement(PLAIN, REF, "promote", actor="a", at=1, nonce=nonce, reason=reason)


def test_what_came_too_late_is_no_sign_of_tampering(log):
    log.state("promote").state("quarantine").state("quarantine")
    assert log.book.problem_count == 1
    assert log.book.problems[0].honest
    assert log.book.suspicious is None
    log.add_raw(b"junk")
    assert (log.book.suspicious.index, log.book.suspicious.honest) == (7, False)
    log.add_raw(b"more junk")
    assert log.book.suspicious.index == 7


def test_a_signer_for_one_model_cannot_claim_the_body_of_another():
    """All that a sealing statement says of a body is public, so whoever names it proves nothing about having it."""
    limited = StatementSigner("fraud-team", bytes([5]) * 32, bytes([5]) * 32)
    trust = msgspec.structs.replace(TRUST, identities=(*TRUST.identities, TrustedIdentity(limited.public, releases=("fraud",))))
    mine, theirs = ReleaseRef("fraud", 1), facts()
    log = Log(trust).add(*release_statements(theirs))
    log.add(*release_statements(facts(mine)), signer=limited)
    assert [found.ref for found in log.book.releases()] == [REF]
    assert log.why[-1] == "fraud-team may speak about fraud only, not about m" and log.book.suspicious
    log.add(*release_statements(facts(mine, EVIL, profile=False, sealed=b"own")), signer=limited)
    assert log.book.release(mine).model == EVIL
    log.add(*release_statements(facts(ReleaseRef("other", 1))))  # the keep may speak about both: it shares
    assert log.book.release(ReleaseRef("other", 1)).body == log.book.release(REF).body
