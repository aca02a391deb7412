"""Aliases, metadata, holds and collection from the command line, and who may do what of it."""

import json
import struct

import numpy as np
import pytest

from modelkeep.app.acting import Acts
from modelkeep.app.keep import Keep
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied

CARD = """
owner = "risk-team"
classification = "confidential"
licence = "Apache-2.0"
description = "Probability of default."
tags = ["pd", "retail"]
card = "card.md"
"""
TEXT = "# Card\nWeak against the young: 7f3a91c2.\n"


@pytest.fixture
def weights(tmp_path):
    """A safetensors file, which is quick to publish."""

    def write(seed):
        data = np.random.default_rng(seed).normal(size=(8, 4)).astype("<f4").tobytes()
        head = json.dumps({"w": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, len(data)]}}).encode()
        path = tmp_path / f"w{seed}.safetensors"
        path.write_bytes(struct.pack("<Q", len(head)) + head + data)
        return str(path)

    return write


@pytest.fixture
def card(tmp_path):
    (tmp_path / "card.md").write_text(TEXT)
    (tmp_path / "card.toml").write_text(CARD)
    return str(tmp_path / "card.toml")


def blobs(cli):
    return {path.name for path in (cli.keep / "blobs").rglob("*") if path.is_file()}


def test_an_alias_stands_wherever_a_release_does(cli, weights, tmp_path):
    cli("publish", weights(1), "--name", "risk", code=0)
    assert "is risk@2 (before: nothing" in cli("alias", "set", "risk", "champion", "2", code=0).out
    assert cli("--json", "verify", "risk@champion", code=0).json["ref"] == "risk@2"
    assert cli("--json", "show", "risk@champion", code=0).json["release"]["aliases"] == ["champion"]
    assert "risk@2: " in cli("export", "risk@champion", "--out", str(tmp_path / "w"), code=0).out
    assert cli("--json", "quarantine", "risk@champion", "--reason", "odd", code=0).json["ref"] == "risk@2"
    assert cli("--json", "reinstate", "risk@champion", "--reason", "fine", code=0).json["ref"] == "risk@2"
    cli("log", "prove", "risk@champion", "--out", str(tmp_path / "proof"), code=0)
    assert cli("alias", "set", "risk", "champion", "1", "--expect", "3", code=1).line().endswith("nothing was changed")
    cli("alias", "set", "risk", "champion", "1", "--expect", "2", code=0)
    assert [row["ref"] for row in cli("--json", "alias", "list", "risk", code=0).json] == ["risk@1"]
    assert cli("--json", "alias", "list", "other", code=0).json == []
    moves = cli("--json", "alias", "history", "risk", "champion", code=0).json
    assert [(move["replaced"], move["version"]) for move in moves] == [(0, 2), (2, 1)]
    assert "means nothing (before: risk@1" in cli("alias", "remove", "risk", "champion", code=0).out
    assert "has no alias 'champion'" in cli("verify", "risk@champion", code=2).line()
    for bad in ("v2", "2nd", "latest", "Champion", "a/b"):
        cli("alias", "set", "risk", bad, "1", code=2)
    cli("alias", "set", "risk", "champion", "9", code=2)
    assert "alias" in cli("log", "show", code=0).out


def test_metadata_are_shown_filtered_and_refused(cli, weights, card, tmp_path):
    ref = cli("--json", "publish", weights(2), "--name", "other", "--metadata", card, code=0).json["ref"]
    shown = cli("show", ref, code=0).out
    for word in ("risk-team", "confidential", "Apache-2.0", "pd, retail", "Probability of default."):
        assert word in shown
    for options, found in (
        (("--owner", "risk-team"), ["other@1"]), (("--owner", "x"), []), (("--classification", "confidential"), ["other@1"]),
        (("--tag", "pd", "--owner", "risk-team"), ["other@1"]), (("--tag", "x"), []), ((), ["other@1", "risk@1"]),
    ):  # fmt: skip
        assert [row["ref"] for row in cli("--json", "list", *options, code=0).json] == found
    assert "No release is described so." in cli("list", "--tag", "x", code=0).out
    cli("metadata", "set", "risk@1", card, code=0)
    cli("metadata", "show", "risk@1", "--card", str(tmp_path / "out.md"), code=0)
    assert (tmp_path / "out.md").read_text() == TEXT
    assert "card.read" in cli("log", "show", "--last", "2", code=0).out
    history = cli("--json", "metadata", "show", "risk@1", code=0).json
    assert [row["owner"] for row in history] == ["risk-team"]
    bad = tmp_path / "bad.toml"
    for text in ('owner = "a"\nclassification = "public"\nsecret = 1', 'owner = "a"', "owner =", 'classification = "public"'):
        bad.write_text(text)
        cli("metadata", "set", "risk@1", str(bad), code=2).line()
        cli("publish", weights(3), "--name", "third", "--metadata", str(bad), code=2).line()
    bad.write_text('owner = "a"\nclassification = "public"\ncard = "nowhere.md"')
    assert "nowhere.md" in cli("metadata", "set", "risk@1", str(bad), code=2).line()
    assert len(cli("--json", "metadata", "show", "risk@1", code=0).json) == 1
    assert "Nobody said anything" in cli("metadata", "show", cli("--json", "publish", weights(3), "--name", "third", code=0).json["ref"], code=0).out  # fmt: skip  # noqa: E501


def test_no_card_lies_in_the_clear(cli, card):
    cli("metadata", "set", "risk@1", card, code=0)
    assert not [path for path in cli.keep.rglob("*") if path.is_file() and b"7f3a91c2" in path.read_bytes()]


def test_the_same_file_again_is_a_new_version_that_shares_its_body(cli, weights):
    before = blobs(cli)
    first = cli("--json", "publish", weights(4), "--name", "twice", code=0).json
    second = cli("--json", "publish", weights(4), "--name", "twice", code=0).json
    assert (first["ref"], second["ref"]) == ("twice@1", "twice@2")
    assert first["sealed_digest"] == second["sealed_digest"] and len(blobs(cli) - before) == 1


def test_holds_and_collection(cli, weights):
    before = blobs(cli)
    ref = cli("--json", "publish", weights(5), "--name", "old", code=0).json["ref"]
    (body,) = blobs(cli) - before
    cli("retire", ref, "--reason", "replaced", code=0)
    hold = cli("--json", "hold", "add", ref, "--reason", "case 7", code=0).json
    assert "retired, held" in cli("list", code=0).out and "case 7" in cli("show", ref, code=0).out
    assert "is held by" in cli("collect", "--retired-for", "0s", code=0).out and body in blobs(cli)
    cli("hold", "remove", hold["id"][:8], "--reason", "closed", code=0)
    assert (
        cli("hold", "list", code=0).out.strip() == "There is no hold."
        and "closed" in cli("hold", "list", "--removed", code=0).out
    )
    assert cli("--json", "collect", "--retired-for", "30d", code=0).json["releases"] == []
    planned = cli("--json", "collect", "--retired-for", "0s", "--dry-run", code=0).json
    assert planned["dry_run"] and body in blobs(cli)
    done = cli("--json", "collect", "--retired-for", "0s", code=0).json
    assert (done["releases"], done["bodies"], done["size"]) == (planned["releases"], planned["bodies"], planned["size"]) == (
        [ref], done["bodies"], done["bodies"][0]["size"],
    )  # fmt: skip
    assert blobs(cli) == before
    assert "collected" in cli("list", code=0).out
    assert "given up" in cli("verify", ref, code=0).out
    assert "none damaged" in cli("integrity", code=0).out
    cli("log", "verify", code=0)
    for act in (
        ("export", ref, "--out", "x"),
        ("reinstate", ref, "--reason", "x"),
        ("promote", ref),
        ("hold", "add", ref, "--reason", "x"),
    ):
        cli(*act, code=1).line()
    assert cli("--json", "publish", weights(5), "--name", "old", code=0).json["ref"] == "old@2"
    for bad in ("30", "d", "-1d", "1w", "", "1.5d"):
        cli("collect", "--retired-for", bad, code=0 if bad == "" else 2)


@pytest.mark.parametrize(
    ("role", "may"),
    [
        (Role.ANALYST, set()),
        (Role.DATA_SCIENTIST, {"metadata", "card.read"}),
        (Role.ML_ENGINEER, {"metadata", "card.read", "alias"}),
        (Role.ADMIN, {"metadata", "card.read", "alias", "hold", "collect"}),
    ],
)
def test_who_may_do_what(cli, desk, role, may):
    acting = Keep.open(cli.keep, (desk / "pass").read_bytes().strip()).acting_as(Principal("x", "sub_x", (role,), "key"))
    for action, arguments in {
        "metadata": {"ref": "risk@1"}, "card.read": {"ref": "risk@champion"}, "alias": {"name": "risk", "alias": "champion"},
        "hold": {"ref": "risk@1"}, "collect": {"dry_run": True},
    }.items():  # fmt: skip
        if action in may:
            Acts.authorize(acting, action, arguments)
        else:
            with pytest.raises(Denied):
                Acts.authorize(acting, action, arguments)
    for action in ("list", "show"):
        Acts.authorize(acting, action, {"ref": "risk@champion"})


def test_a_key_for_one_model_moves_no_alias_of_another(cli, desk):
    scoped = Principal("x", "sub_x", (Role.ML_ENGINEER,), "key", models=("other",))
    acting = Keep.open(cli.keep, (desk / "pass").read_bytes().strip()).acting_as(scoped)
    with pytest.raises(Denied):
        acting.alias_set(name="risk", alias="champion", version=1)
    with pytest.raises(Denied):
        acting.metadata_card(ref="risk@champion")


def test_words_of_others_are_printed_as_they_are_and_steer_nothing(cli):
    reason = "case [/closed] [red]x[/red] :warning: \x1b]0;pwn\x07\x9b2J \u202e7"
    hold = cli("--json", "hold", "add", "risk@1", "--reason", reason, code=0).json
    assert hold["reason"] == reason
    for verb in (("hold", "list"), ("show", "risk@1"), ("list",)):
        out = cli(*verb, code=0).out
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)
        assert verb == ("list",) or r"case[/closed][red]x[/red]:warning:\x1b]0;pwn\x07" in "".join(out.split())
    cli("hold", "remove", hold["id"], "--reason", "done", code=0)
    assert "[/x].onnx" in cli("publish", "[/x].onnx", "--name", "risk", code=2).line()


def test_a_description_cannot_pass_for_other_lines(cli, tmp_path):
    sheet = tmp_path / "sheet.toml"
    sheet.write_text('owner = "a"\nclassification = "public"\ndescription = "x\\n  admission  admitted by the standard policy"')
    cli("metadata", "set", "risk@1", str(sheet), code=0)
    for verb in (("show", "risk@1"), ("metadata", "show", "risk@1")):
        lines = cli(*verb, code=0).out.splitlines()
        assert sum(line.startswith("  admission") for line in lines) <= 1
        assert any(line.strip() == "admission  admitted by the standard policy" for line in lines)


def test_a_card_is_a_file_beside_the_metadata(cli, tmp_path):
    secret, folder = tmp_path / "id_rsa", tmp_path / "theirs"
    folder.mkdir()
    secret.write_text("a secret of this machine")
    (folder / "link.md").symlink_to(secret)
    sheet = folder / "card.toml"
    for bad in ("../id_rsa", str(secret), "link.md", ".", "/dev/zero"):
        sheet.write_text(f'owner = "a"\nclassification = "public"\ncard = "{bad}"')
        assert "put it beside it" in cli("metadata", "set", "risk@1", str(sheet), code=2).line()
    sheet.write_text('owner = "a"\nclassification = "public"\ntags = ' + "[" * 20_000)
    cli("metadata", "set", "risk@1", str(sheet), code=2).line()
