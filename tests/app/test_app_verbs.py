"""Verbs on the wire, and who may call them."""

import msgspec
import pytest

from modelkeep.app.keep import Keep
from modelkeep.app.verbs import call, table, verb
from modelkeep.core.values import Role
from modelkeep.errors import Denied, Invalid, Missing
from modelkeep.policy.engine import Engine, Target


class Desk:
    """A facade of one verb, for whoever is called root."""

    def __init__(self, who: str) -> None:
        self.who, self.done = who, []

    def authorize(self, action, arguments):
        if self.who != "root":
            raise Denied(f"{self.who} may not {action} {arguments['ref']}")

    @verb("promote")
    def promote(self, *, ref: str, times: int = 1) -> tuple[str, ...]:
        """Do it."""
        self.done.append(ref)
        return (ref,) * times

    def helper(self, *, ref: str) -> None:
        """No verb."""
        self.done.append(ref)


def test_a_call_goes_through_permission_to_the_method():
    desk = Desk("root")
    answer = call(table(Desk), desk, "promote", msgspec.msgpack.encode({"ref": "a@1", "times": 2}))
    assert msgspec.msgpack.decode(answer) == ["a@1", "a@1"] and desk.done == ["a@1"]
    assert msgspec.msgpack.decode(call(table(Desk), desk, "promote", msgspec.msgpack.encode({"ref": "b@1"}))) == ["b@1"]


@pytest.mark.parametrize("arguments", [{"ref": "a@1"}, {"ref": "a@1", "times": 2}])
def test_nothing_happens_without_permission(arguments):
    desk = Desk("eve")
    with pytest.raises(Denied, match="eve may not promote a@1"):
        call(table(Desk), desk, "promote", msgspec.msgpack.encode(arguments))
    assert not desk.done


@pytest.mark.parametrize("name", ["helper", "authorize", "__init__", "", "done", "promote "])
def test_only_verbs_can_be_called(name):
    with pytest.raises(Missing):
        call(table(Desk), Desk("root"), name, msgspec.msgpack.encode({"ref": "a@1"}))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"ref": 7}), msgspec.msgpack.encode({"ref": "a", "actor": "root"}), b"\x90"],
)
def test_malformed_calls_are_invalid(body):
    desk = Desk("root")
    with pytest.raises(Invalid, match="promote"):
        call(table(Desk), desk, "promote", body)
    assert not desk.done


def test_every_verb_of_the_keep_has_an_action_that_an_admin_may_do():
    policy = Engine()
    verbs = table(Keep)
    assert {"publish", "promote", "quarantine", "review", "export", "user_add", "key_issue"} <= set(verbs)
    loans = Target("Dataset", "loans")
    known = {"purpose": "", "fits": True, "granted": True, "owner": False, "personal": False}
    for found in verbs.values():
        assert found.action != "data.extend"  # is asked besides, of whoever adds
        what = (loans, known) if found.action in ("data.read", "data.grant", "data.remove") else ()
        assert Role.ADMIN in policy.who_may(found.action, *what), found.name
        assert found.result is not None
        msgspec.msgpack.Decoder(found.params)
        msgspec.msgpack.Decoder(found.result)


def test_what_needs_the_passphrase_is_no_verb():
    assert not {"keys_passwd", "keys_recover", "keyring", "settle", "acting_as", "init", "open", "upgrade", "act"} & set(
        table(Keep)
    )


def test_a_passphrase_of_text_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(Invalid, match="is bytes, or what gives them: encode text first"):
        Keep.open(tmp_path, "correct horse battery staple")
