"""A copy is traced to the account that paid for it, and the report is run again without the keep, whole and spoilt."""

import contextlib
import dataclasses
import datetime
import hashlib
import http.server
import io
import json
import shutil
import threading
import time
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from commandline import Cli
from gateway_support import PASSPHRASE, live, make_keep, question, train
from skl2onnx import to_onnx
from sklearn.ensemble import ExtraTreesClassifier

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.adapters.surrogates import harden
from modelkeep.app.keep import Keep
from modelkeep.app.probing import Pools, Probing
from modelkeep.app.recorded import recorded_answers
from modelkeep.app.suspects import onnx_suspect
from modelkeep.app.tracing import Shown, check_trace
from modelkeep.core.values import ReleaseRef, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.keys import AUDIT_SUBJECT, WATERMARK
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.extraction.ladder import DEFAULT, Rung
from modelkeep.extraction.perturb import commitment
from modelkeep.extraction.probes import draw_pool, draw_probes, drawn, probe_seed
from modelkeep.extraction.profile import Profile
from modelkeep.formats.safetensors import dump, load
from modelkeep.ledger.predicates import Commitment, TraceCommitments
from modelkeep.ledger.statements import encode_statement, make_statement, parse_statement, predicate_of, sign_statement
from modelkeep.workflows.decisions import OpenedKey
from modelkeep.workflows.marks import account_key
from modelkeep.workflows.registry import PROFILE
from modelkeep.workflows.tracecheck import _among, _multiplied, _shown
from modelkeep.workflows.tracereport import CAVEATS, Grouped, TraceReport

INFER = "/v2/models/iris/infer"


def ask(client, rows):
    answer = client.post(INFER, content=question(rows))
    assert answer.status_code == 200, answer.text
    probs = next(one for one in answer.json()["outputs"] if one["name"] == "probabilities")
    return np.array(probs["data"]).reshape(probs["shape"])


def _of_one_hour(folder, trained):
    """A keep whose accounts signed up in the same hour of the clock: made again if the hour turned meanwhile.

    Both sign up here: what ``make_keep`` copies may have been made in an hour before.
    """
    while True:
        begun = time.time() // 3600
        keep = make_keep(folder, trained, accounts=())
        for name in ("alice", "bob"):
            keep.user_add(name=name, roles=("analyst",))
        if time.time() // 3600 == begun:
            return keep
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stolen(tmp_path_factory):
    """The command line on a keep whose model alice copied and bob asked too; its folder; the copy, file and surrogate."""
    folder = tmp_path_factory.mktemp("stolen")
    trained = train()
    keep = _of_one_hour(folder / "keep", trained)
    thief = keep.key_issue(account="alice", quota=10_000).token
    honest = keep.key_issue(account="bob", quota=10_000).token
    rng = np.random.default_rng(3)
    rows = (trained.fresh[rng.integers(300, size=1200)] + rng.normal(size=(1200, 6)) * 0.4).astype(np.float32)
    with live(keep) as gateway:
        with gateway.client(thief) as client:
            answers = np.concatenate([ask(client, rows[at : at + 50]) for at in range(0, 1000, 50)])
        with gateway.client(honest) as client:
            ask(client, rows[1000:1040])
        assert gateway.errors == []
    weighted, classes, weights = harden(answers)
    copy = ExtraTreesClassifier(20, min_samples_leaf=2, random_state=1).fit(rows[weighted], classes, sample_weight=weights)
    proto = to_onnx(copy, rows[:1], options={id(copy): {"zipmap": False}}, target_opset=18)
    (folder / "copy.onnx").write_bytes(proto.SerializeToString())
    (folder / "beacon").write_bytes(b"the value of round 4,242,424")
    np.savez(folder / "probes.npz", x=trained.fresh)
    np.save(folder / "asked.npy", rows[:1000])
    (folder / "pass").write_bytes(PASSPHRASE)
    cli = Cli(folder / "keep", folder / "pass")
    return cli, folder, keep


@pytest.fixture(scope="module")
def report(stolen):
    cli, folder, _ = stolen
    ran = cli("trace", str(folder / "copy.onnx"), "--model", "iris@1", "--beacon-file", str(folder / "beacon"),
              "--report", str(folder / "case"), "--json", code=0)  # fmt: skip
    return ran.json, folder / "case"


def check(stolen, folder, *more, code=None):
    return stolen[0]("trace-check", str(folder), "--trust", str(stolen[1] / "keep" / "trust.toml"), *more, code=code)


def test_the_thief_is_named_and_nobody_else(report):
    found, _ = report
    assert [one["account"] for one in found["accounts"]] == ["alice", "bob"]
    assert found["accounts"][0]["p"] < 1e-9 < 0.05 < found["accounts"][1]["p"]
    assert found["report"] == {}


def test_the_report_holds_without_the_keep(stolen, report, tmp_path):
    shutil.copytree(report[1], tmp_path / "elsewhere")
    ran = check(stolen, tmp_path / "elsewhere", "--suspect", str(stolen[1] / "copy.onnx"), "--json", code=0)
    seen = {one["what"]: one["seen"] for one in ran.json["found"]}
    assert set(seen) == {
        *("signature", "code", "terms", "probes", "seed", "commitment", "age", "order", "p-value", "probes alone"),
        *("mark", "suspect"),
    }
    assert ran.json["settled"] and "drawn again, of 16,384 rows" in seen["probes"] and "0.05" in seen["terms"]
    assert 500 < int(seen["mark"].split(" of ")[0]) <= 1000, "some were given at other rungs of the ladder"
    assert "before its first answer" in seen["order"]
    (p,) = ran.json["p"].values()
    assert p == pytest.approx(report[0]["accounts"][0]["p"], rel=1e-6)
    assert "Not proven here" in check(stolen, tmp_path / "elsewhere", code=0).out


def test_it_opens_the_key_of_the_accused_and_of_nobody_else(stolen, report):
    _, folder, keep = stolen
    statement = json.loads((report[1] / "report.json").read_bytes())
    (accused,) = statement["predicate"]["accused"]
    everything = b"".join(path.read_bytes() for path in report[1].iterdir())
    master, ref = keep.premises.keyring([WATERMARK]).secret(WATERMARK), ReleaseRef.parse("iris@1")
    thief, other = (account_key(master, one["subject"], ref).hex() for one in report[0]["accounts"])
    assert accused["key"] == thief and other.encode() not in everything and master.hex().encode() not in everything
    assert report[0]["accounts"][1]["subject"] not in (report[1] / "report.html").read_text()
    assert statement["predicate"]["probes"]["said"] == b"the value of round 4,242,424".hex()
    assert "sha256:" + statement["subject"][0]["digest"]["sha256"] == digest_of((folder / "copy.onnx").read_bytes())


def test_probes_of_a_beacon_are_drawn_by_it_and_by_the_suspect(stolen, report):
    _, folder, keep = stolen
    registry = keep.premises.registry(keep.premises.openers())
    evidence = registry.release(ReleaseRef.parse("iris@1"))
    profile = Profile.from_arrays(
        load(registry.open_body(evidence.profile_body, evidence.profile_digest, PROFILE).read_source())
    )
    pool, suspect = draw_pool(profile.embedding), hashlib.sha256((folder / "copy.onnx").read_bytes()).digest()
    assert (pool.root, len(pool)) == (evidence.profile.trace.pool, evidence.profile.trace.rows)
    index = drawn((folder / "beacon").read_bytes(), pool.root, len(pool), suspect)
    shown = load((report[1] / "probes.safetensors").read_bytes())
    assert np.array_equal(shown["pool.index"], index) and np.array_equal(shown["x"], pool.rows[index])


def test_a_release_of_before_has_no_pool_and_no_report_by_probes_of_its_own(stolen):
    _, _, keep = stolen
    registry = keep.premises.registry(keep.premises.openers())
    evidence = registry.release(ReleaseRef.parse("iris@1"))
    opened = registry.open_body(evidence.profile_body, evidence.profile_digest, PROFILE).read_source()
    profile = Profile.from_arrays(load(opened))

    def pools(terms):
        said = msgspec.structs.replace(evidence.profile, trace=terms)
        return Pools(msgspec.structs.replace(evidence, profile=said), profile, {}, 5)

    found = pools(None).draw(Probing("beacon", beacon=b"abc"), bytes(32))
    assert found.pooled is None and np.array_equal(found.x, draw_probes(profile, 2000, probe_seed(b"abc", bytes(32))))
    with pytest.raises(Invalid, match="an earlier version published"):
        pools(None).check_reportable(Probing("log"))
    pools(None).check_reportable(Probing("theirs", found.x))
    with pytest.raises(NotTrusted, match="another pool"):
        pools(msgspec.structs.replace(evidence.profile.trace, pool="00" * 32)).draw(Probing("log"), bytes(32))
    with pytest.raises(Invalid, match="5 values a row"):
        pools(None).draw(Probing("data", found.x[:, :5]), bytes(32))


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attributes):
        assert not {"src", "href", "onload"} & {name for name, _ in attributes}
        self.tags.append(tag)


def test_the_page_asks_nothing_of_the_network(report):
    text = (report[1] / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and "svg" in page.tags and "url(" not in text
    assert "trace-check FOLDER" in text


def test_what_was_changed_is_found(stolen, report, tmp_path):
    statement = json.loads((report[1] / "statement.json").read_bytes())
    numbers = {name: array.copy() for name, array in load((report[1] / "account-1.safetensors").read_bytes()).items()}
    numbers["read"] = numbers["clean"]
    plain = json.loads((report[1] / "report.json").read_bytes())
    plain["predicate"]["significance"] = 0.05
    for file, data, word in (
        ("statement.json", msgspec.json.encode({**statement, "signatures": statement["signatures"][:1]}), "signature"),
        ("account-1.safetensors", dump(numbers), "not the file that was signed"),
        ("report.json", msgspec.json.encode(plain), "does not say what"),
        ("account-1.tlog-proof", (report[1] / "account-1.first.tlog-proof").read_bytes(), "not the file"),
        ("probes.safetensors", None, "has no probes.safetensors"),
        ("report.html", (report[1] / "report.html").read_bytes().replace(b"p = ", b"p < "), "report.html of the report is not"),
    ):
        case = tmp_path / file / "case"
        shutil.copytree(report[1], case)
        (case / file).unlink() if data is None else (case / file).write_bytes(data)
        ran = check(stolen, case)
        assert ran.code in (1, 2), ran
        assert word in ran.line()
    ran = check(stolen, report[1], "--suspect", str(stolen[1] / "probes.npz"))
    assert ran.code != 0 and ran.line()


class Forger:
    """The owner, who signs whatever report he likes with the keep's own signer."""

    def __init__(self, keep, folder):
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.statement = parse_statement(parse_envelope(self.files["statement.json"]).unverified_payload())
        self.said = predicate_of(self.statement, TraceReport)
        self.signer = keep.premises.desk().signer

    def signed(self, accused=None, numbers=None, other=None, without=(), unsigned=(), subjects=None, **changed):
        now = {name: data for name, data in {**self.files, **(other or {})}.items() if name not in without}
        if numbers is not None:
            now["account-1.safetensors"] = dump(numbers)
        one = msgspec.structs.replace(self.said.accused[0], **(accused or {}))
        digests = {name: digest_of(now[name]) for name in now if name not in ("report.json", "statement.json", *unsigned)}
        said = msgspec.structs.replace(self.said, accused=(one,), files=digests, **changed)
        made = make_statement(said, *(subjects or self.statement.subject))
        return {**now, "report.json": encode_statement(made), "statement.json": sign_statement(made, self.signer)}


def test_an_owner_who_signs_what_he_made_up_is_found(stolen, report):
    """The keep's own signer signs a report whose numbers, key, proof or order do not hold."""
    _, folder, keep = stolen
    forger = Forger(keep, report[1])
    files, said, signed = forger.files, forger.said, forger.signed
    trust = (folder / "keep" / "trust.toml").read_bytes()
    assert check_trace(signed(), trust).p
    arrays = {name: array.copy() for name, array in load(files["account-1.safetensors"]).items()}
    other = bytes(31) + b"\1"
    with pytest.raises(NotTrusted, match="not the one that"):
        check_trace(signed({"key": other.hex()}), trust)
    with pytest.raises(NotTrusted, match="does not commit"):
        check_trace(signed({"key": other.hex(), "commitment": commitment(other).hex()}), trust)
    with pytest.raises(NotTrusted, match="proves entry"):
        check_trace(signed({"entry": said.accused[0].entry + 1}), trust)
    with pytest.raises(NotTrusted, match="computed again"):
        check_trace(signed(numbers={**arrays, "read": arrays["clean"]}), trust)
    for changed, word in (
        ({"epoch": 1, "epochs": 2}, "does not commit to this key"),
        ({"epochs": 40}, "computed again"),
        ({"epochs": 0}, "different epochs"),
        ({"epoch": -1}, "different epochs"),
    ):
        with pytest.raises(NotTrusted, match=word):
            check_trace(signed(changed), trust)
    with pytest.raises(NotTrusted, match="recorded answers"):
        check_trace(signed(numbers={**arrays, "served": arrays["clean"]}), trust)
    with pytest.raises(NotTrusted, match="not 1000 distinct"):
        check_trace(signed(numbers={**arrays, "x": np.repeat(arrays["x"][:1], 1000, axis=0)}), trust)
    with pytest.raises(NotTrusted, match="of iris@2"):
        check_trace(signed(release="iris@2"), trust)
    with pytest.raises(NotTrusted, match="which is no audit log"):
        check_trace(signed({"first": said.accused[0].proof}), trust)
    with pytest.raises(NotTrusted, match="after the suspect was seen"):
        check_trace(signed(seen=1), trust)
    with pytest.raises(NotTrusted, match="after the suspect was seen"):
        check_trace(signed(), trust, Shown(seen=1))
    probes = {name: array.copy() for name, array in load(files["probes.safetensors"]).items()}
    with pytest.raises(Invalid, match="share of answers"):
        check_trace(signed(other={"probes.safetensors": dump({**probes, "fine": probes["fine"] + 1.0})}), trust)
    for part in ("offset", "spots.slope", "fine"):  # he looked for cells or spots with which somebody is accused
        moved = dump({**probes, part: probes[part] + np.float32(0.125)})
        with pytest.raises(NotTrusted, match="that these are the cells and spots"):
            check_trace(signed(other={"probes.safetensors": moved}), trust)
    with pytest.raises(NotTrusted, match="after it committed to the key"):
        check_trace(signed({"entry": 0}), trust)
    with pytest.raises(NotTrusted, match="is significant"):
        check_trace(signed(significance=1e-250), trust)
    with pytest.raises(NotTrusted, match=r"at most 0\.1 is"):
        check_trace(signed(significance=1.0), trust)
    for tested in (0, -7):  # p would be corrected to nothing
        with pytest.raises(NotTrusted, match=f"accuses 1 accounts, and says that {tested} were tested"):
            check_trace(signed(accounts=tested), trust)
    for share in (-0.5, 1.5):
        with pytest.raises(Invalid, match="answered falsely in"):
            check_trace(signed({"share": share}), trust)
    few = {"lied.x": arrays["x"][:5], "lied.clean": arrays["clean"][:5], "lied.read": np.roll(arrays["read"][:5], 1, axis=1)}
    for lied in (few["lied.x"] + 1.0, few["lied.x"][[0, 1, 2, 3, 3]]):
        with pytest.raises(NotTrusted, match="none of its questions"):
            check_trace(signed({"share": 0.3}, {**arrays, **few, "lied.x": lied}), trust)
    told = _among(_shown({"a": dump({**arrays, **few})}, "a"), "lied.", said.accused[0])
    assert np.array_equal(told.read, arrays["read"][:5]), "what it answers there stands among all its answers already"
    for how, word in (("data", "handed in"), ("else", "does not say")):
        loose = check_trace(signed(probes=msgspec.structs.replace(said.probes, how=how, pool="")), trust)
        told = {one.what: one.seen for one in loose.found}
        assert word in told["probes"] and "not shown" in told["age"] and not loose.settled
    nine = tuple(f"sub_{number}" for number in range(9))
    with pytest.raises(NotTrusted, match="at most 8 members"):
        _multiplied(Grouped("", nine, 0, 1.0, 1e-9), said, dict.fromkeys(nine, 50.0))
    with pytest.raises(Invalid, match="fit together"):
        check_trace(signed(numbers={**arrays, "clean": arrays["clean"][:-1]}), trust)


def npz(rows):
    told = io.BytesIO()
    np.savez(told, x=rows)
    return told.getvalue()


def test_an_owner_who_picks_the_probes_or_the_mark_afterwards_is_found(stolen, report):
    """He knows the key and the suspect, and signs a report by other rows, other values or another mark."""
    _, folder, keep = stolen
    forger = Forger(keep, report[1])
    signed, about = forger.signed, forger.said.probes
    trust = (folder / "keep" / "trust.toml").read_bytes()
    probes = {name: array.copy() for name, array in load(forger.files["probes.safetensors"]).items()}

    def probed(known=None, without=(), **changed):
        more = {} if known is None else {"probes.safetensors": dump(known)}
        return signed(other=more, without=without, probes=msgspec.structs.replace(about, **changed))

    def moved(name, row):
        array = probes[name].copy()
        array[0] = row
        return {**probes, name: array}

    for made, word in (
        (probed(moved("x", probes["x"][1])), "inclusion path"),
        (probed(moved("x", probes["x"][0] + 1e-9)), "not rows of a pool"),
        (probed(moved("pool.index", probes["pool.index"][1])), "not those that the beacon"),
        (probed(moved("pool.paths", probes["pool.paths"][1])), "inclusion path"),
        (probed({name: array for name, array in probes.items() if name != "pool.paths"}), "not rows of a pool"),
        (probed(count=7), "says that it has 7"),
        (probed({**probes, "pool.index": probes["pool.index"] * np.nan}), "not those that the beacon"),
        (probed({**probes, "pool.paths": probes["pool.paths"] * np.nan}), "not rows of a pool"),
        (probed(moved("x", 1e300)), "not rows of a pool"),
        (probed(beacon=b"another".hex(), said=b"another".hex()), "not those that the beacon"),
        (probed(beacon=b"another".hex()), "two values"),
        (probed(beacon="a value"), "not hex"),
        (probed(beacon=""), "its beacon is ''"),
        (probed(how="log", said=""), "drawn by log"),
        (probed(pool="00" * 32), "says nothing of the pool"),
        (probed(rows=4), "says nothing of the pool"),
        (probed(entry=0), "says nothing of the pool"),
        (probed(pool=""), "of which pool probes are drawn"),
        (probed(how="log", pool=""), "of which pool probes are drawn"),
        (probed(how="theirs"), "no proof of what the log says of the pool"),
        (probed(how="data"), "no proof of what the log says of the pool"),
        (probed(without=("code.tlog-proof",)), "no proof of what the log says of the pool"),
        (signed(unsigned=("probes.safetensors",)), "not among the files that were signed"),
        (signed(unsigned=("account-1.tlog-proof",)), "not among the files that were signed"),
        (signed(epsilon=0.049), "a mark of 0.05 and 4 decimals"),
        (signed(decimals=3), "a mark of 0.05 and 4 decimals"),
        (signed(subjects=forger.statement.subject[:1]), "not about a suspect and a model"),
        (signed(subjects=forger.statement.subject[:1] * 2), "the log says that iris@1 is"),
    ):
        with pytest.raises(NotTrusted, match=word):
            check_trace(made, trust)
    for name in ("clean", "read"):  # 1e308 made e no number, which was read as p = 1e-300
        with pytest.raises(Invalid, match="no probabilities"):
            check_trace(probed(moved(name, -1e308)), trust)
    act = keep.log_prove_entry(entry=0)
    with pytest.raises(NotTrusted, match=r"says nothing of a pool|not a"):
        check_trace(signed(other={"pool.tlog-proof": act}, probes=msgspec.structs.replace(about, how="data")), trust)
    for how, told in (("beacon", "as the report says"), ("log", "as the report says"), ("data", "accuse anybody")):
        old = check_trace(probed(how=how, pool="", without=("code.tlog-proof",)), trust)
        assert told in next(one.seen for one in old.found if one.what == "probes"), "reports of before still check"
    assert not old.settled and {one.what: one.seen for one in old.found}["terms"].startswith("not shown")
    assert len(old.caveats) == len(CAVEATS), "nothing is shown"


def test_the_reader_says_what_he_knows_himself(stolen, report, tmp_path):
    """The value that both sides meant, rows that the other side chose, and the owner's model, where an expert is shown it."""
    _, folder, keep = stolen
    forger, trust = Forger(keep, report[1]), (folder / "keep" / "trust.toml").read_bytes()
    beacon, model = (folder / "beacon").read_bytes(), train().onnx
    copy = onnx_suspect((folder / "copy.onnx").read_bytes())
    plain, alone, told = (
        check_trace(forger.files, trust, Shown(beacon=value, suspect=suspect))
        for value, suspect in ((b"", copy), (beacon, None), (beacon, copy))
    )
    assert plain.settled and told.settled and len(told.caveats) == len(plain.caveats) - 1
    assert alone.caveats == plain.caveats, "who knows the value can still change bytes of a file that nobody else has"
    assert "for you to know" in {one.what: one.seen for one in plain.found}["seed"]
    for said, kind in (("address", "address"), ("onnx", "address"), ("onnx", "function")):
        spelled = forger.signed(kind=said)
        seen = check_trace(spelled, trust, Shown(beacon=beacon, suspect=dataclasses.replace(copy, kind=kind)))
        words = next(one.seen for one in seen.found if one.what == "seed")
        assert f"how the owner spells the {kind}" in words and seen.caveats == plain.caveats
    with pytest.raises(NotTrusted, match="another value than yours"):
        check_trace(forger.files, trust, Shown(beacon=beacon + b"\n"))
    with pytest.raises(NotTrusted, match="you say that the other side chose them"):
        check_trace(forger.files, trust, Shown(probes=(folder / "probes.npz").read_bytes()))
    shown = check_trace(forger.files, trust, Shown(model=model))
    assert [one.what for one in shown.found].count("model") == 2 and "clean answers" not in " ".join(shown.caveats)
    numbers = {name: array.copy() for name, array in load(forger.files["account-1.safetensors"]).items()}
    numbers["clean"][0] = np.roll(numbers["clean"][0], 1)
    with pytest.raises(NotTrusted, match="the model that was shown does not answer"):
        check_trace(forger.signed({"carried": 0, "p": 1e-6}, numbers), trust, Shown(model=model))
    with pytest.raises(NotTrusted, match="the model that was shown is sha256"):
        check_trace(forger.files, trust, Shown(model=(folder / "copy.onnx").read_bytes()))
    x = load(forger.files["probes.safetensors"])["x"]
    theirs = forger.signed(probes=msgspec.structs.replace(forger.said.probes, how="theirs", pool=""))
    with pytest.raises(NotTrusted, match="which is for you to know"):
        check_trace(theirs, trust)
    assert check_trace(theirs, trust, Shown(probes=npz(x))).settled
    with pytest.raises(NotTrusted, match="not the rows that you say"):
        check_trace(theirs, trust, Shown(probes=npz(x[:-1])))
    with pytest.raises(NotTrusted, match="no value draws"):
        check_trace(theirs, trust, Shown(probes=npz(x), beacon=beacon))
    (tmp_path / "model.onnx").write_bytes(model)
    more = ("--beacon-file", str(folder / "beacon"), "--model-file", str(tmp_path / "model.onnx"))
    said = check(stolen, report[1], "--suspect", str(folder / "copy.onnx"), *more, code=0).out
    assert "Settled before the keys" in said and "That the value that drew" not in said


def test_no_p_value_is_smaller_than_the_report_claims(stolen, report):
    """A later version reads more: nobody is accused by the better of two readings, and reports of before keep their numbers."""
    _, folder, keep = stolen
    forger, trust = Forger(keep, report[1]), (folder / "keep" / "trust.toml").read_bytes()
    (thief,) = {one.subject for one in forger.said.accused}
    found = check_trace(forger.signed({"p": 1e-6}), trust)
    assert found.p == {thief: pytest.approx(1e-6 * forger.said.accounts)}
    assert "p = 1e-06" in next(one.seen for one in found.found if one.what == "p-value")


def test_all_of_the_log_shows_what_single_proofs_cannot(stolen, report):
    """A second key for the same account and epoch, keys that the report does not count, and a report of before."""
    _, folder, keep = stolen
    forger, trust = Forger(keep, report[1]), (folder / "keep" / "trust.toml").read_bytes()
    log, thief = Shown(log=str(folder / "keep" / "log")), forger.said.accused[0]
    plain, whole = check_trace(forger.files, trust), check_trace(forger.files, trust, log)
    assert len(whole.caveats) == len(plain.caveats) - 4
    for about, stays in (("first", False), ("releases", True)):
        assert CAVEATS[about] in plain.caveats and (CAVEATS[about] in whole.caveats) is stays
    words = next(one.seen for one in whole.found if one.what == "log")
    assert "no other key" in words and "2 were tested" in words and int(words.split("keys of ")[1].split()[0]) > 2
    for changed, word in (({}, "corrects for 1"), ({"accused": {"epochs": 9, "p": 1e-30}}, "an earlier report told the key")):
        with pytest.raises(NotTrusted, match=word):
            check_trace(forger.signed(**changed, at=forger.said.at + 10**18), trust, log)
    innocent = next(one["subject"] for one in report[0]["accounts"] if one["account"] == "bob")
    said = TraceCommitments(
        actor="mallory", at=1, release="iris@1", entries=(Commitment(innocent, thief.commitment, 0),)
    )  # the thief's key, as if it were the innocent's, too
    (index,) = keep.premises.desk().log_statements([make_statement(said, forger.statement.subject[1])])
    forged = forger.signed(
        {"subject": innocent, "entry": index, "first": "", "carried": 0},
        other={"account-1.tlog-proof": keep.log_prove_entry(entry=index)},
    )
    assert check_trace(forged, trust).p[innocent] < 1e-9, "each proof holds"
    with pytest.raises(NotTrusted, match="that counts in the log is not the report's"):
        check_trace(forged, trust, log)
    assert check(stolen, report[1], "--log", str(folder / "keep" / "log"), "--json", code=0).json["settled"]


def test_a_report_on_rows_that_were_not_logged_before_the_keys_is_refused(stolen, report, tmp_path):
    cli, folder, _ = stolen
    copy, rows = (str(folder / "copy.onnx"), "--model", "iris@1"), str(tmp_path / "rows.npz")
    natural = np.load(folder / "probes.npz")["x"]
    np.savez(rows, x=natural[:200])
    lead = cli("trace", *copy, "--probes", rows, "--json", code=0).json
    assert "not logged before the keys" in lead["verdict"]
    assert "proves nothing" in cli("trace", *copy, "--probes", rows, "--report", str(tmp_path / "a"), code=2).line()
    logged = cli("log-probes", rows, "--model", "iris@1", "--json", code=0).json
    assert logged["rows"] == 200 and logged["older"] >= 2 and len(logged["pool"]) == 64
    assert "stand in entry" in cli("log-probes", rows, "--model", "iris@1").line()
    late = cli("trace", *copy, "--probes", rows, "--seen", "2030-01-01", code=2).line()
    assert "not come yet" in late
    found = cli("trace", *copy, "--probes", rows, "--report", str(tmp_path / "b"), "--json", code=0).json
    assert "older than the pool" in found["verdict"] and all(one["late"] for one in found["accounts"])
    assert "nobody" in check(stolen, tmp_path / "b", code=0).out
    theirs = ("--probe", "theirs", "--probes", rows)
    cli("trace", *copy, *theirs, "--report", str(tmp_path / "c"), code=0)
    assert "for you to know" in check(stolen, tmp_path / "c").line()
    assert check(stolen, tmp_path / "c", "--probes", rows, "--json", code=0).json["settled"]
    assert "--probe theirs with" in cli("trace", *copy, *theirs, "--beacon-file", str(folder / "beacon")).line()


def test_a_key_that_is_younger_than_the_suspect_proves_nothing(stolen, report, tmp_path):
    """What is said of its age counts, and that a suspect was traced before."""
    cli, folder, keep = stolen
    copy, case = str(folder / "copy.onnx"), str(tmp_path / "case")
    old = cli("trace", copy, "--model", "iris@1", "--seen", "2026-01-31", "--report", case, "--json", code=0).json
    assert old["verdict"].startswith("No account") and "Nothing is claimed of alice" in old["verdict"]
    assert [one["late"] for one in old["accounts"]] == [True, True] and old["accounts"][0]["p"] < 1e-9
    assert json.loads((tmp_path / "case" / "report.json").read_bytes())["predicate"]["accused"] == []
    now = datetime.datetime.now(datetime.UTC)
    for given, word in (
        ("soon", "no day or time"),
        ("1969-12-31", "before 1970"),
        ("1970-01-01", "before 1970"),
        ((now + datetime.timedelta(1)).isoformat(), "has not come yet"),
    ):
        assert word in cli("trace", copy, "--model", "iris@1", "--seen", given, code=2).err
    assert "after the suspect was seen" in check(stolen, report[1], "--seen", "2026-01-31").line()
    again = str(tmp_path / "again")
    found = cli("trace", copy, "--model", "iris@1", "--seen", now.isoformat(), "--report", again, "--json", code=0).json
    assert found["verdict"].startswith("Traced to alice")
    seen = {one["what"]: one["seen"] for one in check(stolen, again, "--json", code=0).json["found"]}
    assert "before the suspect was seen" in seen["age"]
    traced = keep.premises.decisions().traced[digest_of((folder / "copy.onnx").read_bytes())]
    said = json.loads((tmp_path / "again" / "report.json").read_bytes())["predicate"]["seen"]
    assert said == traced < now.timestamp() * 1e9, "it was traced before that"


def test_a_function_and_an_address_are_traced_too(stolen, report, tmp_path):
    cli, folder, _ = stolen
    code = tmp_path / "adapter.py"
    code.write_text(
        "import os, onnxruntime\nassert not [name for name in os.environ if name.startswith('MODELKEEP_')]\n"
        f"session = onnxruntime.InferenceSession({str(folder / 'copy.onnx')!r})\nprint('loaded')\n"
        "def predict(rows):\n"
        "    return session.run(['probabilities'], {session.get_inputs()[0].name: rows.astype('float32')})[0]\n"
        "def broken(rows):\n    raise RuntimeError('no such thing')\n"
    )
    probes = ("--probes", str(folder / "probes.npz"))
    found = cli("trace", f"{code}:predict", "--model", "iris@1", *probes, "--json", code=0).json
    assert found["accounts"][0]["account"] == "alice" and found["accounts"][0]["p"] < 1e-6
    assert "no such thing" in cli("trace", f"{code}:broken", "--model", "iris@1", *probes, code=2).line()
    with speaking(OnnxRuntime((folder / "copy.onnx").read_bytes())) as server:
        address = f"http://127.0.0.1:{server.server_port}/v2/models/iris/versions/3"
        case = tmp_path / "case"
        soft = cli("trace", address, "--model", "iris@1", "--report", str(case), "--json", code=0).json
        check(stolen, case, "--suspect", address, code=0)
        server.labels = True
        assert "does not answer as" in check(stolen, case, "--suspect", address).line()
        hard = cli("trace", address, "--model", "iris@1", "--json", code=0).json
    assert soft["accounts"][0]["account"] == "alice" and soft["accounts"][0]["p"] < 1e-9
    assert hard["accounts"][0]["p"] > 1e-3, "labels carry no mark"


def test_a_suspect_that_refuses_its_own_questions_cannot_forbid_the_trace(stolen, tmp_path):
    """Its thief has it answer what he asked with no numbers: what is left is what the probes say, and the trace says that."""
    cli, folder, _ = stolen
    code = tmp_path / "adapter.py"
    code.write_text(
        "import numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(folder / 'copy.onnx')!r})\n"
        f"asked = {{row.tobytes() for row in numpy.load({str(folder / 'asked.npy')!r})}}\n"
        "def told(rows):\n"
        "    rows = rows.astype('float32')\n"
        "    found = session.run(['probabilities'], {session.get_inputs()[0].name: rows})[0]\n"
        "    return found, numpy.array([row.tobytes() in asked for row in rows])\n"
        "def denying(rows):\n"
        "    found, mine = told(rows)\n"
        "    return numpy.where(mine[:, None], numpy.nan, found)\n"
    )
    beacon = ("--beacon-file", str(folder / "beacon"))
    named, case = f"{code}:denying", str(tmp_path / "case")
    found = cli("trace", named, "--model", "iris@1", *beacon, "--report", case, "--json", code=0).json
    alice = next(one for one in found["accounts"] if one["account"] == "alice")
    assert alice["statistics"]["fine-root"] < 3.0, "its questions say nothing"
    assert "gave none for" in found["verdict"]
    ran = check(stolen, case, "--suspect", named, "--json", code=0).json
    assert ran["settled"] and "suspect" in {one["what"] for one in ran["found"]}


@contextlib.contextmanager
def speaking(model):
    """A server with ``model``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.model, server.labels, server.daemon_threads = model, False, True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    """Another server that speaks the Open Inference Protocol; ``server.labels``: it tells labels alone."""

    OUTPUTS = (
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
    )

    def do_GET(self):
        inputs = [{"name": "X", "datatype": "FP32", "shape": [-1, 6]}]
        self.say({"name": "iris", "inputs": inputs, "outputs": self.OUTPUTS})

    def do_POST(self):
        (tensor,) = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        found = self.server.model.run({"X": rows})
        told = [(one, found[one["name"]]) for one in (self.OUTPUTS[:1] if self.server.labels else self.OUTPUTS)]
        self.say({"outputs": [{**one, "shape": list(array.shape), "data": array.ravel().tolist()} for one, array in told]})

    def say(self, what):
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_bad_arguments_are_one_line(stolen, tmp_path):
    cli, folder, _ = stolen
    copy = str(folder / "copy.onnx")
    (tmp_path / "empty").write_bytes(b"")
    for arguments, word in (
        ((copy, "--probe", "data"), "--probe data goes with --probes"),
        ((copy, "--probe", "log", "--beacon-file", str(folder / "beacon")), "goes with"),
        ((copy, "--beacon-file", str(tmp_path / "empty")), "is empty"),
        ((copy, "--key-file", str(folder / "pass")), "for a suspect at an address"),
        ((copy, "--report", str(folder)), "exists"),
        ((copy, "--report", str(tmp_path / "no" / "case")), "there is no folder"),
        (("https://models.example/here",), "is no model's address"),
        (("nothing.py:predict",), "cannot read nothing.py"),
        ((str(folder / "probes.npz"),), "suspect"),
    ):
        ran = cli("trace", *arguments, "--model", "iris@1")
        assert ran.code in (1, 2, 3), ran
        assert word in ran.line()
    assert "no folder" in check((cli, folder), tmp_path / "away").line()
    (tmp_path / "other").mkdir()
    assert "has no statement.json" in check((cli, folder), tmp_path / "other").line()


def traced_by_labels(stolen, folder, rows, labels):
    """The accounts of a trace of a copy that learnt these labels and tells labels alone, and p by subject as it is checked."""
    copy = ExtraTreesClassifier(20, random_state=1).fit(rows, labels)
    proto = to_onnx(copy, rows[:1], options={id(copy): {"zipmap": False}}, target_opset=18)
    with speaking(OnnxRuntime(proto.SerializeToString())) as server:
        server.labels = True
        address = f"http://127.0.0.1:{server.server_port}/v2/models/iris/versions/1"
        case = str(folder / "case")
        found = stolen[0]("trace", address, "--model", "iris@1", "--report", case, "--json", code=0).json
        return found["accounts"], check(stolen, case, "--suspect", address, "--json", code=0).json["p"]


def test_the_key_that_a_report_opens_is_no_longer_in_use_when_it_leaves(stolen, report):
    _, _, keep = stolen
    ref, (alice, bob) = ReleaseRef.parse("iris@1"), [one["subject"] for one in report[0]["accounts"]]
    book = keep.premises.registry().book
    assert [len(book.committed(subject, ref)) for subject in (alice, bob)] == [2, 1]
    assert set(keep.premises.decisions().opened) == {OpenedKey("iris@1", alice, 0)}
    opened = next(row.index for row in keep.log_show(last=50) if "opened=" in row.summary)
    assert book.committed(alice, ref)[1].entry < opened


def test_labels_alone_are_traced_once_a_review_had_the_account_deceived(stolen, tmp_path):
    """The copy saw top classes and nothing else, and those of a share of the regions were false."""
    _, _, keep = stolen
    keep.review(account="alice", outcome="deceived", reason="the trace names her")
    token = keep.key_issue(account="alice", quota=10_000).token
    rng = np.random.default_rng(8)
    rows = (rng.normal(size=(500, 6)) * 2.5).astype(np.float32)
    with live(keep) as gateway, gateway.client(token) as client:
        labels = np.concatenate([ask(client, rows[at : at + 50]) for at in range(0, 500, 50)]).argmax(axis=1)
    (first, second), checked = traced_by_labels(stolen, tmp_path, rows, labels)
    assert first["account"] == "alice" and first["p"] < 1e-6 < 0.05 < second["p"]
    assert first["statistics"]["false"] > 6 and "false" not in second["statistics"]
    assert checked[first["subject"]] == pytest.approx(first["p"], rel=1e-6)  # her neighbour in the hour may be named beside


def test_flipped_labels_are_asked_for_in_a_review_recorded_traced_and_taken_back(stolen, tmp_path):
    """As above, with so few false answers that a customer would hardly notice."""
    cli, _, keep = stolen
    rng = np.random.default_rng(11)
    rows = (rng.normal(size=(600, 6)) * 2.5).astype(np.float32)
    token = keep.key_issue(account="bob", quota=10_000).token
    assert "percent" in cli("review", "bob", "--outcome", "deceived", "--reason", "x", "--flips", "0.5", code=2).err
    assert "0.1% to 10%" in cli("review", "bob", "--outcome", "cleared", "--reason", "x", "--flips", "5%", code=2).line()
    with live(keep) as gateway, gateway.client(token) as client:
        truth = ask(client, rows[:6]).argmax(axis=1)
        cli("review", "bob", "--outcome", "deceived", "--reason", "his labels are on sale", "--flips", "5%", code=0)
        labels = np.concatenate([ask(client, rows[at : at + 50]) for at in range(0, 600, 50)]).argmax(axis=1)
        assert np.array_equal(np.concatenate([ask(client, row[None]) for row in rows[:50]]).argmax(axis=1), labels[:50])
        gateway.service.gateway._flips = {}.get  # the review was not read there yet
        assert client.post(INFER, content=question(rows[:1])).status_code == 503
        gateway.service.gateway._flips = keep.premises.decisions().flipping
        keep.review(account="bob", outcome="cleared", reason="it was another")
        assert np.array_equal(ask(client, rows[:6]).argmax(axis=1), truth)
        assert gateway.errors == []
    (first, second), checked = traced_by_labels(stolen, tmp_path, rows, labels)
    assert first["account"] == "bob" and first["p"] < 1e-9 < 0.05 < second["p"]
    assert first["statistics"]["flips"] > 9 and "flips" not in second["statistics"]
    assert checked[first["subject"]] == pytest.approx(first["p"], rel=1e-6)  # her neighbour in the hour may be named beside
    assert "5.0% of its labels were flipped" in (tmp_path / "case" / "report.html").read_text()
    (accused,) = json.loads((tmp_path / "case" / "report.json").read_bytes())["predicate"]["accused"]
    assert accused["flips"] == 0.05


def test_accounts_that_taught_one_copy_are_accused_together(stolen, tmp_path):
    """They signed up in one hour; the copy learnt from the answers of both. By now reports have opened their keys."""
    cli, folder, keep = stolen
    keep.premises.keyring([AUDIT_SUBJECT])
    both = recorded_answers(keep.premises, keep.premises.registry(), ReleaseRef.parse("iris@1"))
    newest = [epochs[max(epochs)] for epochs in both.values()]
    x, told = np.concatenate([one.x for one in newest]), np.concatenate([one.served for one in newest])
    copy = ExtraTreesClassifier(20, random_state=1).fit(x, told.argmax(axis=1))
    proto = to_onnx(copy, x[:1].astype(np.float32), options={id(copy): {"zipmap": False}}, target_opset=18)
    (tmp_path / "copy.onnx").write_bytes(proto.SerializeToString())
    case, about = tmp_path / "case", (str(tmp_path / "copy.onnx"), "--model", "iris@1")
    young = cli("trace", *about, "--json", code=0).json
    assert young["together"] == [] and "opened before" in young["verdict"] and all(one["late"] for one in young["accounts"])
    opened = keep.premises.decisions().opened
    before = min(opened[OpenedKey("iris@1", subject, max(epochs))] for subject, epochs in both.items())
    when = datetime.datetime.fromtimestamp(before // 1000 / 1e6, datetime.UTC).isoformat()
    found = cli("trace", *about, "--seen", when, "--report", str(case), "--json", code=0).json
    by_name = {one["name"]: one for one in found["together"]}
    (cluster,) = [one for name, one in by_name.items() if name.startswith("signup-")]
    assert set(cluster["accounts"]) == {"alice", "bob"} and (cluster["others"], cluster["tests"]) == (0, 1.0)
    assert cluster["p"] < 1e-12 and "Together: " in found["verdict"]
    ran = check(stolen, case, "--json", code=0)
    said = [one["seen"] for one in ran.json["found"] if one["what"] == "together"]
    assert len(said) == len(found["together"]) and len(ran.json["p"]) == 2
    assert "together</h2>" in (case / "report.html").read_text()
    files = {path.name: path.read_bytes() for path in case.iterdir()}
    statement = parse_statement(parse_envelope(files["statement.json"]).unverified_payload())
    report = predicate_of(statement, TraceReport)

    def signed(**changed):
        groups = tuple(msgspec.structs.replace(one, **changed) for one in report.together)
        made = make_statement(msgspec.structs.replace(report, together=groups), *statement.subject)
        signer = keep.premises.desk().signer
        return {**files, "report.json": encode_statement(made), "statement.json": sign_statement(made, signer)}

    trust = (folder / "keep" / "trust.toml").read_bytes()
    assert check_trace(signed(), trust).p
    alice = report.accused[0].subject
    for changed, word in (
        ({"p": 1e-280}, "computed again"),
        ({"tests": 1e250}, "computed again"),
        ({"members": (alice, alice)}, "each once"),
        ({"members": ("sub_1",)}, "the report opens"),
        ({"others": -50}, "each once"),
    ):
        with pytest.raises(NotTrusted, match=word):
            check_trace(signed(**changed), trust)


def test_two_thefts_with_a_renewal_in_between_are_traced_by_both_keys(stolen, tmp_path):
    """And once these were opened, what is younger is not read with them. The probes are rows of the owner's, which he logged
    before she had a key: of accounts with older keys nothing is claimed."""
    cli, folder, keep = stolen
    cli("log-probes", str(folder / "probes.npz"), "--model", "iris@1", code=0)
    keep.user_add(name="carol", roles=("analyst",))
    token, ref = keep.key_issue(account="carol", quota=10_000).token, ReleaseRef.parse("iris@1")
    (carol,) = [subject for subject, name in keep.names().items() if name == "carol"]
    rng, natural = np.random.default_rng(21), np.load(folder / "probes.npz")["x"]
    rows = (natural[rng.integers(300, size=440)] + rng.normal(size=(440, 6)) * 0.2).astype(np.float32)
    answers = []
    with live(keep) as gateway, gateway.client(token) as client:
        gateway.service.gateway._stand = lambda *_: (Rung.MARK, DEFAULT.steps[Rung.MARK])  # what others asked is no matter here
        answers += [ask(client, rows[at : at + 44]) for at in range(0, 220, 44)]
        done = cli("renew-mark", "carol", "--model", "iris@1", "--reason", "a letter went astray", "--json", code=0).json
        end = time.monotonic() + 60
        while gateway.service.gateway._marks.epoch(carol, ref) == 0:  # until the gateway's next look at the log
            assert time.monotonic() < end
            time.sleep(0.05)
        assert np.array_equal(ask(client, rows[:5]).argmax(axis=1), answers[0][:5].argmax(axis=1))
        answers += [ask(client, rows[at : at + 44]) for at in range(220, 440, 44)]
        assert gateway.errors == []
    assert done["epoch"] == 1 and sorted(recorded_answers(keep.premises, keep.premises.registry(), ref)[carol]) == [0, 1]
    weighted, classes, weights = harden(np.concatenate(answers))
    copy = ExtraTreesClassifier(20, random_state=2).fit(rows[weighted], classes, sample_weight=weights)
    proto = to_onnx(copy, rows[:1], options={id(copy): {"zipmap": False}}, target_opset=18)
    (tmp_path / "copy.onnx").write_bytes(proto.SerializeToString())
    pool = ("--probes", str(folder / "probes.npz"), "--beacon-file", str(folder / "beacon"))
    about, case = (str(tmp_path / "copy.onnx"), "--model", "iris@1", *pool), tmp_path / "case"
    found = cli("trace", *about, "--report", str(case), "--json", code=0).json
    assert [one["account"] for one in found["accounts"] if not one["late"]] == ["carol"]
    assert found["accounts"][0]["account"] == "carol" and found["accounts"][0]["p"] < 1e-6 and not found["accounts"][0]["spent"]
    said = json.loads((case / "report.json").read_bytes())["predicate"]
    assert [(one["subject"], one["epoch"], one["epochs"]) for one in said["accused"]] == [(carol, 0, 2), (carol, 1, 2)]
    assert (case / "report.html").read_text().count(f"<h2>{carol}, epoch ") == 2
    seen = check(stolen, case, "--suspect", about[0], "--json", code=0).json
    assert list(seen["p"].values()) == [pytest.approx(found["accounts"][0]["p"], rel=1e-6)] and seen["settled"]
    assert "rows that the owner handed in" in next(one["seen"] for one in seen["found"] if one["what"] == "probes")
    forger, trust = Forger(keep, case), (folder / "keep" / "trust.toml").read_bytes()
    with pytest.raises(NotTrusted, match="of which rows probes are drawn after it committed to the key"):
        check_trace(forger.signed({"entry": forger.said.probes.entry}), trust)
    assert [one["seen"][-7:] for one in seen["found"] if one["what"] == "commitment"] == ["epoch 0", "epoch 1"]
    assert len(keep.premises.registry().book.committed(carol, ref)) == 3, "she has a key that nobody was shown"
    again = cli("trace", *about, "--json", code=0).json["accounts"][0]
    assert again["p"] == pytest.approx(2 * found["accounts"][0]["p"]), "there are six runs of three epochs now"
    copy = ExtraTreesClassifier(20, random_state=3).fit(rows[weighted], classes, sample_weight=weights)
    proto = to_onnx(copy, rows[:1], options={id(copy): {"zipmap": False}}, target_opset=18)
    (tmp_path / "young.onnx").write_bytes(proto.SerializeToString())
    young = cli("trace", str(tmp_path / "young.onnx"), "--model", "iris@1", "--json", code=0).json
    assert "Nothing is claimed of carol" in young["verdict"] and not young["verdict"].startswith("Traced")
    assert young["accounts"][0]["late"] and young["accounts"][0]["spent"]


def test_keys_are_renewed_by_age_where_the_settings_say_so_and_by_hand_for_a_reason(stolen):
    cli, folder, keep = stolen
    ref, subjects = ReleaseRef.parse("iris@1"), keep.subjects()

    def epochs():
        book = keep.premises.registry().book
        return [len(book.committed(subject, ref)) for subject in subjects]

    before = epochs()
    assert keep.marks_due() == 0 and keep.renew_marks(ref, subjects, before=1) == 0 and epochs() == before
    with (folder / "keep" / "modelkeep.toml").open("a") as file:
        file.write("\n[extraction]\nmark_epoch_days = 1e-9\n")
    assert Keep.open(folder / "keep", PASSPHRASE).marks_due() == len(subjects) and epochs() == [one + 1 for one in before]
    ran = cli("renew-mark", "bob", "--model", "iris@1", "--reason", " ", code=2)
    assert "a reason has" in ran.line()
    assert "no account" in cli("renew-mark", "nobody", "--model", "iris@1", "--reason", "x").line()
    assert "no release" in cli("renew-mark", "bob", "--model", "iris@2", "--reason", "x").line()
