"""Attest, approve and policies from the command line, and who may do what of it."""

import json

import pytest

from modelkeep.app.keep import Keep
from modelkeep.core.values import Principal, Role, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.errors import Denied, Invalid, Unavailable
from modelkeep.ledger.predicates import Policy
from modelkeep.ledger.statements import keep_resource, make_statement

AUDITOR = """
@id("auditor") @says("auditors read")
permit (principal in Role::"auditor", action in Action::"read", resource);
"""
CLOSED = '@id("admins") @says("administrators alone") permit (principal in Role::"admin", action, resource);'
PRIVACY = {"epsilon": 3.0, "delta": 1e-5, "accountant": "prv"}
HARDENING = {
    "method": "pgd-at",
    "attack": {"name": "apgd-ce", "norm": "linf", "epsilon": 0.1, "steps": 100},
    "robust": {"value": 0.8, "low": 0.78, "high": 0.82, "examples": 1000},
    "clean": {"value": 0.9, "low": 0.88, "high": 0.92, "examples": 1000},
}


@pytest.fixture
def keep(cli):
    return Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())


def person(keep, name, *roles):
    keep.user_add(name=name, roles=roles)
    return keep.acting_as(Principal(name, f"sub_{name}", tuple(roles), "session:x"))


def write(path, said):
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return str(path)


def unmet(cli, *more):
    rules = cli("--json", "policy", "explain", "risk@1", *more, code=0).json["rules"]
    return [rule["id"] for rule in rules if not rule["satisfied"]]


def test_evidence_adds_up_until_strict_has_all_but_what_others_must_do(cli, desk, tmp_path):
    every = unmet(cli, "--by", "strict")
    assert every == [
        "two-approvals", "provenance", "dependencies-audited", "robust", "private", "watermark-committed", "witnessed",
    ]  # fmt: skip
    cli("attest", "risk@1", "--type", "privacy", write(tmp_path / "p.json", PRIVACY), code=0)
    cli("attest", str(desk / "model.onnx"), "--type", "hardening", write(tmp_path / "h.json", HARDENING), code=0)
    assert set(every) - set(unmet(cli, "--by", "strict")) == {"private", "robust"}
    shown = cli("--json", "show", "risk@1", code=0).json
    assert {"privacy", "hardening"} <= {statement["type"] for statement in shown["statements"]}
    assert unmet(cli) == [], "standard asks for none of it"


def test_check_says_yes_or_no_and_what_is_in_the_way(cli):
    assert "admitted by the standard policy" in cli("policy", "check", "risk@1", code=0).out
    refused = cli("policy", "check", "risk@1", "--by", "strict", code=1)
    assert "two people other than its publisher" in refused.out and "watermark" in refused.out
    assert cli("--json", "policy", "check", "risk@1", "--by", "strict", code=1).json["admitted"] is False
    text = cli("policy", "explain", "risk@1", "--by", "strict", code=0).out
    assert "NO   two people" in text and "→ have them run" in text and "(statement: approval)" in text
    cli("quarantine", "risk@1", "--reason", "x", code=0)
    assert "promote it" in cli("policy", "check", "risk@1", code=1).out
    cli("reinstate", "risk@1", "--reason", "x", code=0)
    assert cli("policy", "check", "risk@1", code=1) and cli("policy", "check", "risk@1", "--as-promoted", code=0)


def test_two_people_other_than_the_publisher_approve(cli, keep, tmp_path):
    ada, bo = person(keep, "ada", Role.ML_ENGINEER), person(keep, "bo", Role.DATA_SCIENTIST)
    assert ada.approve(ref="risk@1").by == ("sub_ada",)
    assert bo.approve(ref="risk@1", reason="read it").by == ("sub_ada", "sub_bo")
    assert "two-approvals" not in unmet(cli, "--by", "strict")
    rejected = bo.approve(ref="risk@1", verdict="reject", reason="it drifts")
    assert (rejected.by, rejected.against) == (("sub_ada",), ("sub_bo",))
    assert unmet(cli) == ["not-rejected"]
    assert bo.approve(ref="risk@1", verdict="withdraw").against == () and unmet(cli) == []


def test_whose_approval_does_not_count_is_told_so(cli, keep):
    assert "nobody in particular" in cli("approve", "risk@1", code=1).line()
    with pytest.raises(Denied, match="ml_engineer"):
        person(keep, "carl", Role.ANALYST).approve(ref="risk@1")
    dan = person(keep, "dan", Role.ML_ENGINEER)
    weights = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    dan.publish(name="own", filename="w.safetensors", model=weights)
    with pytest.raises(Denied, match="somebody else must approve"):
        dan.approve(ref="own@1")
    assert dan.approve(ref="own@1", verdict="reject").against == ("sub_dan",), "that it must not be served he may say"


def test_bad_input_is_one_line(cli, tmp_path, desk):
    good = write(tmp_path / "good.json", PRIVACY)
    for arguments, word in [
        (("risk@9", "--type", "privacy", good), "risk@9"),
        (("nowhere.onnx", "--type", "privacy", good), "no release and no file"),
        (("risk@1", "--type", "privacy", str(tmp_path / "none.json")), "no file"),
        (("risk@1", "--type", "privacy", write(tmp_path / "a.json", "not json")), "not a privacy predicate"),
        (("risk@1", "--type", "privacy", write(tmp_path / "b.json", "[1]")), "not a privacy predicate"),
        (("risk@1", "--type", "privacy", write(tmp_path / "c.json", PRIVACY | {"epsilonn": 1})), "'epsilonn'"),
        (("risk@1", "--type", "privacy", write(tmp_path / "d.json", PRIVACY | {"actor": "me"})), "filled in by the keep"),
        (("risk@1", "--type", "privacy", write(tmp_path / "e.json", PRIVACY | {"epsilon": -1})), "at `$.epsilon`"),
        (("risk@1", "--type", "privacy", write(tmp_path / "f.json", PRIVACY | {"accountant": "x" * 50_000})), "48,000"),
        (("risk@1", "--type", "watermark", good), "'epsilon'"),
    ]:
        assert word in cli("attest", *arguments, code=2).line()
    for own in ("approval", "bom", "training-run", "vulnerabilities"):  # a verb of their own finds out what they say
        assert own in cli("attest", "risk@1", "--type", own, good, code=2).err
    assert len(cli("--json", "log", "show", "--last", "500", code=0).json) == cli("--json", "status", code=0).json["log_size"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("permit (", "parsed"),
        ('@id("a") permit (principal, action, resource) when { resource.colour == "red" };', "schema"),
        ("permit (principal, action, resource);", "@id"),
        ('@id("a") permit (principal, action, resource) when { resource.owner == "' + "x" * 40_000 + '" };', "at most"),
    ],
)
def test_a_policy_that_could_not_decide_is_never_in_force(cli, tmp_path, text, word):
    assert word in cli("policy", "set", "admission", write(tmp_path / "p.cedar", text), code=2).line()
    assert cli("--json", "policy", "history", code=0).json == []
    assert "neither a policy" in cli("policy", "set", "admission", "lenient", code=2).line()
    assert "only the access policy" in cli("policy", "set", "admission", "--extend", "strict", code=2).line()


@pytest.mark.parametrize("kind", ["training-run", "vulnerabilities", "approval", "bom"])
def test_what_the_keep_finds_out_itself_is_not_told_to_it(keep, kind):
    with pytest.raises(Invalid, match="are not attested: 'modelkeep"):
        keep.attest(ref="risk@1", kind=kind, predicate=b"{}")


def test_no_digest_of_data_is_logged_plain(cli, keep, tmp_path):
    loans = write(tmp_path / "loans.csv", "amount,term\n1,2\n")
    plain = digest_of(b"amount,term\n1,2\n")
    said = write(tmp_path / "d.json", {"name": "loans@3", "format": "csv", "size": 16})
    cli("attest", loans, "--type", "dataset", said, code=0)
    measure = {"value": 0.9, "low": 0.8, "high": 1.0, "examples": 9}
    data = {"name": "loans@3/test", "digest": plain, "files": 0}
    evaluation = {"suite": "s", "metrics": {"accuracy": measure}, "dataset": data}
    cli("attest", "risk@1", "--type", "evaluation", write(tmp_path / "e.json", evaluation), code=0)
    registry = keep.premises.registry()
    found = registry.book.dossier(keep.ref("risk@1"))
    (about,) = found.datasets
    assert found.evaluations[0].said.dataset.digest == about and found.datasets[about].said.name == "loans@3"
    whole = b"".join(parse_envelope(entry).unverified_payload() for entry in registry.view.entries(0, registry.book.size))
    assert plain[7:].encode() not in whole and about[7:].encode() in whole
    for digest in ("zz", "sha256:00", plain[7:]):
        bad = write(tmp_path / "b.json", evaluation | {"dataset": data | {"digest": digest}})
        assert "digest" in cli("attest", "risk@1", "--type", "evaluation", bad, code=2).line()
    assert "no data set" in cli("attest", "risk@1", "--type", "dataset", said, code=2).line()


def test_policies_have_a_history_and_their_text_can_be_read(cli, tmp_path):
    shown = cli("policy", "show", code=0).out
    assert '@id("scan-clean")' in shown
    mine = write(
        tmp_path / "mine.cedar", shown + '\n@id("x") forbid (principal, action, resource) when { resource.high > 3 };\n'
    )
    for policy in ("strict", mine, "open"):
        cli("policy", "set", "admission", policy, "--reason", f"try {policy[-6:]}", code=0)
    assert [row["name"] for row in cli("--json", "policy", "history", code=0).json] == ["strict", "custom", "open"]
    assert "scan-clean" not in cli("policy", "show", code=0).out
    assert unmet(cli, "--by", mine) == []


def test_a_promoted_release_that_the_policy_refuses_is_told_so(cli):
    cli("policy", "set", "admission", "strict", code=0)
    cli("quarantine", "risk@1", "--reason", "x", code=0)
    cli("reinstate", "risk@1", "--reason", "x", code=0)
    promoted = cli("promote", "risk@1", code=0).out
    assert "risk@1 is promoted" in promoted and "not served yet" in promoted and "two people" in promoted
    assert "not served" in cli("show", "risk@1", code=0).out


def test_roles_are_added_without_code(cli, keep, tmp_path):
    for role in ("auditor", "emperor"):
        assert "no rule of the access policy" in cli("user", "add", "erin", "--role", role, code=2).line()
    assert "not the name of a role" in cli("user", "role", "alice", "--role", "Ad min", code=2).line()
    cli("policy", "set", "access", write(tmp_path / "a.cedar", AUDITOR), "--extend", "--reason", "audit", code=0)
    cli("user", "add", "erin", "--role", "auditor", code=0)
    erin = keep.acting_as(Principal("erin", "sub_erin", ("auditor",), "session:x"))
    assert erin.releases()[0].ref == "risk@1"
    with pytest.raises(Denied, match="erin"):
        erin.promote(ref="risk@1")
    cli("policy", "set", "access", "default", code=0)
    with pytest.raises(Denied):
        erin.releases()


def test_no_policy_locks_out_whoever_holds_the_folder(cli, keep, tmp_path):
    cli("policy", "set", "access", write(tmp_path / "c.cedar", CLOSED), code=0)
    bob = keep.acting_as(Principal("bob", "sub_bob", (Role.ML_ENGINEER,), "session:x"))
    with pytest.raises(Denied):
        bob.releases()
    cli("policy", "set", "access", write(tmp_path / "d.cedar", CLOSED.replace("permit", "forbid")), code=0)
    cli("policy", "set", "access", "default", code=0)
    assert bob.releases()


def test_a_policy_of_a_later_version_allows_nothing_and_says_so(cli, keep):
    said = Policy(
        actor="x", at=1, kind="admission", name="custom", replaces=-1, id="ab" * 16,
        text='@id("n") permit (principal, action, resource) when { resource.later };',
    )  # fmt: skip
    desk = keep.premises.desk()
    desk.log_statements([make_statement(said, keep_resource(keep.premises.trust.origin))])
    with pytest.raises(Unavailable, match="this version"):
        keep.policy_explain(ref="risk@1")
    assert "cannot be read by this version" in cli("policy", "check", "risk@1", code=3).line()
    cli("policy", "set", "admission", "standard", code=0)
    cli("policy", "check", "risk@1", code=0)


def test_only_administrators_set_policies(keep):
    for role in (Role.ML_ENGINEER, Role.DATA_SCIENTIST, Role.ANALYST):
        who = keep.acting_as(Principal("w", "sub_w", (role,), "session:x"))
        with pytest.raises(Denied):
            who.policy_set(kind="admission", profile="open")
        assert who.policy_show().policy.name == "standard"
