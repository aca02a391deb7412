"""OpenSSF signatures from the command line, with the reference tool on the other side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelkeep.app.keep import Keep
from modelkeep.custody.keys import OMS_SIGNING
from modelkeep.custody.oms import BundleKey

TOOL = Path(sys.executable).with_name("model_signing")


def tool(*arguments):
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def tool_verifies(model, signature, key):
    return tool("verify", "key", model, "--signature", signature, "--public_key", key)[0]


@pytest.fixture
def public(cli, tmp_path):
    """The PEM file that a user of the reference tool gets."""
    path = tmp_path / "oms.pem"
    path.write_text(cli("trust", "show", "--oms-key", code=0).out)
    return path


@pytest.fixture
def model(desk, tmp_path):
    path = tmp_path / "work" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes((desk / "model.onnx").read_bytes())
    return path


def publish(cli, desk, model, *more):
    return cli("--json", "publish", str(model), "--name", "risk", "--reference", str(desk / "ref.npz"), *more, code=0)


def test_publish_writes_a_signature_beside_the_model_that_the_reference_tool_verifies(cli, desk, model, public):
    done = publish(cli, desk, model)
    signature = model.with_name("model.onnx.sig")
    assert done.json["signature"] == str(signature)
    assert tool_verifies(model, signature, public)
    assert cli("verify", str(model), "--oms", str(signature), code=0).out.startswith(f"{model}: signed by the key")
    assert cli("verify", str(model), "--oms", str(signature), "--key", str(public), code=0)
    model.write_bytes(model.read_bytes() + b"!")
    assert not tool_verifies(model, signature, public)
    assert "is not the file that was signed" in cli("verify", str(model), "--oms", str(signature), code=1).line()


def test_the_log_has_the_signature_and_export_writes_the_same_one(cli, desk, model, public, tmp_path):
    publish(cli, desk, model)
    out = tmp_path / "again.onnx"
    cli("export", "risk@2", "--out", str(out), code=0)
    assert out.with_name("again.onnx.sig").read_bytes() == model.with_name("model.onnx.sig").read_bytes()
    assert tool_verifies(out, out.with_name("again.onnx.sig"), public)
    assert "the OpenSSF signature is over the model's very bytes" in cli("verify", "risk@2", code=0).out
    elsewhere = tmp_path / "elsewhere.sig"
    done = cli("--json", "export", "risk@1", "--out", str(tmp_path / "first.onnx"), "--signature", str(elsewhere), code=0).json
    assert done["signature"] == str(elsewhere) and not (tmp_path / "first.onnx.sig").exists()


def test_publishing_the_same_file_again_finds_the_signature_in_place(cli, desk, model):
    assert publish(cli, desk, model).err == publish(cli, desk, model).err == ""


def test_a_new_model_under_the_same_name_replaces_the_old_signature_of_this_keep(cli, desk, model, public):
    publish(cli, desk, model)
    before = model.with_name("model.onnx.sig").read_bytes()
    import onnx

    changed = onnx.load_from_string(model.read_bytes())
    changed.doc_string = "another version"
    model.write_bytes(changed.SerializeToString())
    publish(cli, desk, model)
    assert model.with_name("model.onnx.sig").read_bytes() != before
    assert tool_verifies(model, model.with_name("model.onnx.sig"), public)


@pytest.mark.parametrize("content", ["", "notes of mine", "{}"])
def test_a_file_that_is_not_this_keeps_signature_is_never_overwritten(content, cli, desk, model):
    mine = model.with_name("model.onnx.sig")
    mine.write_text(content)
    done = publish(cli, desk, model)
    assert "was not made with this keep's key" in done.err and done.json["signature"] == ""
    assert mine.read_text() == content
    asked = cli("publish", str(model), "--name", "risk", "--reference", str(desk / "ref.npz"), "--signature", str(mine), code=2)
    assert "is no OpenSSF signature" in asked.line()
    assert len(cli("--json", "list", code=0).json) == 2  # refused before anything was published


def test_a_place_that_cannot_be_written_is_said_with_what_was_done(cli, desk, model, tmp_path):
    gone = tmp_path / "no such folder" / "model.sig"
    ran = cli("publish", str(model), "--name", "risk", "--reference", str(desk / "ref.npz"), "--signature", str(gone), code=2)
    assert ran.line().startswith("modelkeep: error: risk@2 is published, but not its signature")
    assert cli("verify", "risk@2", code=0)


def test_a_stranger_with_the_key_alone_verifies_files_and_folders(bare, public, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = generate_private_key(SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "public.pem").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights" / "0.bin").write_bytes(b"weights")
    assert tool("sign", "key", folder, "--private_key", tmp_path / "key.pem", "--signature", folder / "model.sig")[0]
    asked = ("verify", str(folder), "--oms", str(folder / "model.sig"))
    done = bare("--json", *asked, "--key", str(tmp_path / "public.pem"), code=0).json
    assert done["files"] == ["config.json", "weights/0.bin"] and done["algorithm"] == "sha256"
    assert "2 files" in bare(*asked, "--key", str(tmp_path / "public.pem"), code=0).out
    assert "another key" in bare(*asked, "--key", str(public), code=1).line()
    assert "no keep" in bare(*asked, code=2).line()
    assert "--key goes with --oms" in bare("verify", "risk@1", "--key", str(public), code=2).line()
    (folder / "added").write_text("")
    assert "'added' was not signed" in bare(*asked, "--key", str(tmp_path / "public.pem"), code=1).line()


def test_a_keep_of_an_earlier_version_is_told_to_upgrade_and_then_signs(cli, desk, model, tmp_path):
    """The compartment is gone, and neither the sealed trust root nor trust.toml knows of it: as if it had never been."""
    forget_oms(cli)
    ran = cli("publish", str(model), "--name", "risk", "--reference", str(desk / "ref.npz"), code=2)
    assert "'modelkeep upgrade' makes it" in ran.line()
    assert cli("verify", "risk@1", code=1)  # its signature's key is not in the trust root any more
    assert OMS_SIGNING in cli("upgrade", code=0).out
    assert OMS_SIGNING not in cli("upgrade", code=0).out
    publish(cli, desk, model)
    public = tmp_path / "new.pem"
    public.write_text(cli("trust", "show", "--oms-key", code=0).out)
    assert tool_verifies(model, model.with_name("model.onnx.sig"), public)


def forget_oms(cli):
    import msgspec
    from commandline import PASSPHRASE

    from modelkeep.adapters.clock import SystemEntropy
    from modelkeep.adapters.keys.file import FileKeys
    from modelkeep.custody.keyring import Custodian, SetPassphrase, _open_all

    store = FileKeys(cli.keep / "keys")
    with store.lock():
        families = [family for family in store.families() if family != OMS_SIGNING]
        opened = _open_all(store, families, SetPassphrase(PASSPHRASE.encode()), "")
        trust = msgspec.structs.replace(opened[0].trust, oms=())
        Custodian(store, SystemEntropy())._write(
            [msgspec.structs.replace(one, trust=trust) for one in opened], PASSPHRASE.encode()
        )
    (cli.keep / "keys" / f"{OMS_SIGNING}.keep").unlink()
    (cli.keep / "trust.toml").write_bytes(trust.encode())


def test_a_lost_compartment_gets_a_new_version_and_old_signatures_still_hold(cli, desk, model, public):
    publish(cli, desk, model)
    before = model.with_name("model.onnx.sig").read_bytes()
    (cli.keep / "keys" / f"{OMS_SIGNING}.keep").unlink()
    cli("upgrade", code=0)
    pem = cli("trust", "show", "--oms-key", code=0).out
    assert BundleKey.from_pem(pem.encode()).pem != public.read_bytes()
    cli("verify", "risk@2", code=0)
    model.with_name("model.onnx.sig").write_bytes(before)
    cli("verify", str(model), "--oms", str(model.with_name("model.onnx.sig")), code=0)


def test_a_release_statement_with_a_signature_of_another_model_is_refused(cli, desk, model):
    """Made by hand with the real keys: what a broken publisher could log."""
    import msgspec
    from commandline import PASSPHRASE

    from modelkeep.core.values import digest_of
    from modelkeep.custody.oms import WHOLE
    from modelkeep.errors import NotTrusted
    from modelkeep.workflows.oms import check_bundle

    publish(cli, desk, model)
    keep = Keep.open(cli.keep, PASSPHRASE.encode())
    evidence = keep.premises.registry().release(keep.premises.registry().book.releases().__next__().ref)
    assert check_bundle(keep.premises.trust, evidence)
    signer = keep.keyring([OMS_SIGNING]).bundle_signer()
    others = [
        signer.sign("model.onnx", {WHOLE: digest_of(b"another model")}).decode(),
        signer.sign("model.onnx", {"model.onnx": evidence.model}).decode(),
        json.dumps(json.loads(evidence.bundle) | {"mediaType": "?"}),
        "",
    ]
    for other in others:
        with pytest.raises(NotTrusted, match="OpenSSF signature of risk@1"):
            check_bundle(keep.premises.trust, msgspec.structs.replace(evidence, bundle=other))


def test_after_a_rotation_both_keys_verify_and_after_a_compromise_only_what_the_log_has(cli, desk, model, public, tmp_path):
    publish(cli, desk, model)
    signature = model.with_name("model.onnx.sig")
    cli("keys", "rotate", "oms-signing", code=0)
    assert cli("trust", "show", "--oms-key", code=0).out != public.read_text()
    cli("verify", str(model), "--oms", str(signature), code=0)
    again = tmp_path / "again" / "model.onnx"
    again.parent.mkdir()
    again.write_bytes(model.read_bytes())
    publish(cli, desk, again)
    cli("verify", str(again), "--oms", f"{again}.sig", code=0)
    cli("keys", "compromise", "oms-signing", "1", "--reason", "the laptop was stolen", code=0)
    assert "another key" in cli("verify", str(model), "--oms", str(signature), code=1).line()
    cli("verify", "risk@2", code=0)  # it stood in the log before
    cli("verify", "risk@3", code=0)
    cli("verify", str(again), "--oms", f"{again}.sig", code=0)
    incidents = cli("--json", "incident", "list", code=0).json
    assert any(found["id"] == "keys:oms-signing/1" for found in incidents)
    cli("keys", "compromise", "oms-signing", "1", "--reason", "said again", code=0)
    assert "no key version 9" in cli("keys", "compromise", "oms-signing", "9", "--reason", "why", code=2).line()
    assert "no --since" in cli("keys", "compromise", "oms-signing", "2", "--since", "1", "--reason", "why", code=2).line()


def test_a_primary_that_is_compromised_has_a_successor_at_once(cli, desk, model):
    cli("keys", "compromise", "oms-signing", "1", "--reason", "why", code=0)
    publish(cli, desk, model)
    cli("verify", str(model), "--oms", f"{model}.sig", code=0)
    cli("verify", "risk@2", code=0)


def test_a_key_for_some_models_only_does_not_vouch_for_a_file_of_unknown_name(cli, desk, model):
    signature = publish(cli, desk, model).json["signature"]
    trust = cli.keep / "trust.toml"
    text = trust.read_text()
    before, oms = text.split("[[oms]]")
    assert oms.count('releases = ["*"]') == 1
    trust.write_text(before + "[[oms]]" + oms.replace('releases = ["*"]', 'releases = ["fraud-*"]'))
    try:
        assert "--key" in cli("verify", str(model), "--oms", signature, code=1).line()
    finally:
        trust.write_text(text)
