"""Keys and passphrases never show: not in what commands print, not in any representation, traceback, pickle or core dump."""

import contextlib
import copy
import datetime
import faulthandler
import gc
import pickle
import traceback
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from advisories import snapshot
from canaries import Canaries, key_canaries, private_scalar
from commandline import PASSPHRASE, Cli, copy_keep
from random_networks import independent, rows
from rich.pretty import pretty_repr

from modelkeep.adapters.keys.ring import RingFile
from modelkeep.app.control import open_control
from modelkeep.app.gateway import open_gateway
from modelkeep.app.handover import decode, encode, open_for
from modelkeep.app.keep import Keep
from modelkeep.cli.main import cli as root
from modelkeep.cli.remote import Session
from modelkeep.container.recipients import Passphrase
from modelkeep.core.values import Role
from modelkeep.crypto.cosignatures import KINDS, Cosigner
from modelkeep.crypto.notes import unbase64
from modelkeep.custody.keyring import Keyring, SetPassphrase, Unlocked
from modelkeep.custody.keys import FAMILIES, GATEWAY_FAMILIES, Compartment
from modelkeep.custody.oms import BundleSigner
from modelkeep.errors import Denied, Invalid, NotTrusted
from modelkeep.formats.safetensors import load
from modelkeep.http.control import LoginAsked, LoginGiven
from modelkeep.workflows.registry import MODEL

MAX_SEEN = 12
"""Objects of one class that are looked at."""


# -- objects --


@pytest.fixture(scope="module")
def alive(template, tmp_path_factory):
    """A keep with everything open that ever holds a secret, and its canaries."""
    folder = tmp_path_factory.mktemp("alive")
    keep_folder = copy_keep(template, folder / "keep")
    keep = Keep.open(keep_folder, PASSPHRASE.encode())
    canaries = Canaries()
    canaries.word("passphrase", PASSPHRASE)
    keyring = key_canaries(keep, canaries)
    user = keep.user_add(name="mole", roles=(Role.ML_ENGINEER,))
    issued = keep.key_issue(account="mole")
    canaries.word("one-time password", user.password)
    canaries.word("API key", issued.token)
    opened = open_for(keep.premises, FAMILIES)
    canaries.key("key of control's certificate", private_scalar(opened.leaf.key))
    control = open_control(keep_folder, opened, lambda _text: None)
    with pytest.raises(Denied):
        control.login("mole", user.password, None, "192.0.2.1")
    session, _ = control.login("mole", user.password, "the mole's second password", "192.0.2.1")
    canaries.word("session", session)
    canaries.word("second password", "the mole's second password")
    wire = encode(open_for(keep.premises, GATEWAY_FAMILIES))
    gateway_opened = decode(wire)
    canaries.key("key of the gateway's certificate", private_scalar(gateway_opened.leaf.key))
    gateway = open_gateway(keep_folder, gateway_opened, [], lambda _text: None)
    desk = keep.premises.desk()
    evidence = next(iter(desk.registry.book.releases()))
    body = desk.registry.open_body(evidence.body, evidence.model, MODEL)
    asked = LoginAsked("mole", user.password, "the mole's second password")
    remembered = Session("https://control", "mole", session, 1, "")
    ring = RingFile(f"file:{folder / 'ring'}", lambda: b"the passphrase of a ring", timeout=60, clock=keep.premises.clock)
    ring.create()
    canaries.word("ring's passphrase", "the passphrase of a ring")
    canaries.key("ring key", ring.secret(1, ("primary",), "wrap"))
    witnesses = [Cosigner("witness.example/w", keep.premises.entropy.token(32), kind) for kind in KINDS.values()]
    for witness in witnesses:
        canaries.word("witness key", witness.secret())
        canaries.key("seed of a witness", unbase64(witness.secret().split("+", 4)[4])[1:])
    held = [
        *witnesses,
        ring,
        ring.wrapper(),
        Passphrase(PASSPHRASE.encode()),
        SetPassphrase(PASSPHRASE.encode()),
        asked,
        LoginGiven(session, 1),
        remembered,
        keep,
        keyring,
        user,
        issued,
        opened,
        control,
        wire,
        gateway_opened,
        gateway,
        desk,
        body,
        desk.bundles(),
        desk.wrapper,
    ]
    canaries.key("stretched passphrase", keep.premises.unlocked._kek)
    yield held, canaries
    control.stop()


def is_ours(kind):
    """Whether a class is modelkeep's. Those that python-pkcs11 makes while we call it bear our module's name."""
    return kind.__module__.startswith("modelkeep.") and not any(base.__module__.startswith("pkcs11") for base in kind.__mro__)


def ours(roots):
    """Objects of modelkeep's own classes that can be reached, at most ``MAX_SEEN`` of a class."""
    seen, todo, found = set(), list(roots), {}
    while todo:
        thing = todo.pop()
        if id(thing) in seen or issubclass(type(thing), type | str | bytes | int | float | np.ndarray):
            continue
        seen.add(id(thing))
        if is_ours(type(thing)):
            found.setdefault(type(thing), []).append(thing)
        if type(thing).__module__ not in {"builtins", "_thread"} or isinstance(thing, dict | list | tuple | set):
            todo += gc.get_referents(thing)
    return {kind: things[:MAX_SEEN] for kind, things in found.items()}


def shown(thing):
    """Every way in which a program shows an object that it was not told anything about."""
    yield "repr", lambda: repr(thing)
    yield "str", lambda: str(thing)
    yield "format", lambda: f"{thing}"
    yield "rich", lambda: pretty_repr(thing)
    yield "repr in a list", lambda: repr([thing])


def test_no_representation_of_any_object_shows_a_secret(alive):
    held, canaries = alive
    found = ours([*held, *gc.get_objects()])
    names = {f"{kind.__module__}.{kind.__name__}" for kind in found}
    for expected in (
        "KeyVersion",
        "Compartment",
        "Keyring",
        "Unlocked",
        "StatementSigner",
        "BundleSigner",
        "Opened",
        "Identity",
    ):
        assert any(name.endswith(f".{expected}") for name in names), f"{expected} was not looked at"
    leaks = set()
    for kind, things in found.items():
        for thing in things:
            for way, show in shown(thing):
                if leak := canaries.found(show()):
                    leaks.add(f"{way} of {kind.__module__}.{kind.__qualname__} shows {leak}")
    assert not leaks, "\n".join(sorted(leaks))


def test_no_object_with_a_secret_can_be_pickled_or_copied_away(alive):
    held, canaries = alive
    leaks = set()
    for kind, things in ours(held).items():
        for thing in things:
            try:
                data = pickle.dumps(thing)
                copied = copy.deepcopy(thing)
            except Exception:  # whatever refuses is right
                continue
            assert copied is not None
            if leak := canaries.found(data):
                leaks.add(f"a pickle of {kind.__module__}.{kind.__qualname__} holds {leak}")
    assert not leaks, "\n".join(sorted(leaks))


def test_the_same_words_are_found_when_they_do_show(alive):
    """The test sees what it looks for."""
    held, canaries = alive
    keyring = next(thing for thing in held if isinstance(thing, Keyring))
    assert canaries.found(repr(keyring.secret("model-kek")))
    assert canaries.found(keyring.hand_over(["model-kek"]))
    assert canaries.found(PASSPHRASE)


# -- the command line --

ELSEWHERE = {
    "mfa enrol",
    "mfa confirm",
    "approve",
    "up",
    "control",
    "serve",
    "login",
    "logout",
    "attack",
    "account allow",
    "case",
    "keys move",
    "witness run",
    "unseal",
    "lock",
    "unsealing provider",
    "privacy return",
    "renew-mark",
    "harden",
    "privacy train",
    "privacy audit",
}
"""Verbs that need a server, a person who logged in, a run that was cut off, seconds of training, or a key provider: tests/e2e,
tests/http, tests of the verb itself, and those of the providers have them."""


def verbs(command=root, path=()):
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from verbs(child, (*path, name))
    else:
        yield " ".join(path)


class Heard:
    """A command line whose every word is kept, and the canaries that none of it may hold."""

    def __init__(self, cli, wrong):
        self.cli, self.canaries, self.worked, self.said = cli, Canaries(), set(), []
        self.wrong = Cli(cli.keep, wrong)
        self.canaries.word("passphrase", PASSPHRASE)

    def __call__(self, *words, cli=None, secret=()):
        """Run one command plainly or with --json, and wrongly, too; ``secret``: fields of its answer that it shows once."""
        as_json = len(self.said) % 2 or secret
        ran = (cli or self.cli)(*(["--json"] if as_json else []), *words)
        name = " ".join(words[:2]) if " ".join(words[:2]) in set(verbs()) else words[0]
        if ran.code == 0:
            self.worked.add(name)
        told = {field: ran.json[field] for field in secret if ran.code == 0}
        shown = ran.out
        for field, value in told.items():
            shown = shown.replace(value, "")
            self.canaries.word(f"{field} of {name}", value)
        self.said.append((words, ran.code, shown + ran.err))
        for bad, where in (
            ((*words, "--no-such-option"), self.cli),
            (words[: len(name.split())], self.cli),
            (words, self.wrong),
        ):
            if where is self.cli or name not in {"init", "keygen", "keys passwd", "keys recover"}:
                failed = where(*bad) if where is self.cli else where(*words[: len(name.split())], *words[len(name.split()) :])
                self.said.append((bad, failed.code, failed.out + failed.err))
        return ran

    def leaks(self):
        return [
            f"{' '.join(words)} ({code}) said {leak}" for words, code, text in self.said if (leak := self.canaries.found(text))
        ]


def test_no_verb_says_a_secret(template, desk, tmp_path):
    heard = Heard(Cli(copy_keep(template, tmp_path / "keep"), desk / "pass"), desk / "wrong")
    heard.canaries.word("wrong passphrase", "not the passphrase at all")
    recovery = Path(template.parent / "init.json")
    told = msgspec.json.decode(recovery.read_bytes())
    heard.canaries.word("recovery identity", told["recovery"])
    heard.canaries.word("the administrator's password", told["password"])
    key_canaries(Keep.open(heard.cli.keep, PASSPHRASE.encode()), heard.canaries)
    drive(heard, desk, tmp_path, told["recovery"])
    key_canaries(Keep.open(heard.cli.keep, b"another passphrase of words"), heard.canaries)
    heard.canaries.word("new passphrase", "another passphrase of words")
    assert not heard.leaks(), "\n".join(heard.leaks())
    undriven = set(verbs()) - heard.worked - ELSEWHERE
    failed = [f"{' '.join(words)}: {text}" for words, code, text in heard.said if code == 1 and " ".join(words[:2]) in undriven]
    assert not undriven, f"drive {sorted(undriven)} here\n" + "\n".join(failed[:10])


def drive(run, desk, tmp_path, recovery):
    """Every verb at least once as it is meant, in an order that works."""
    run("witness", "init", str(tmp_path / "witness"), "--name", "witness.example/w")
    for line in (tmp_path / "witness" / "witness.key").read_text().splitlines()[1:]:
        run.canaries.word("witness key", line)
        run.canaries.word("seed of a witness", line.split("+", 4)[4])
    run("witness", "show", str(tmp_path / "witness"))
    run("witness", "status")
    run("witness", "ask")
    model, reference, work = str(desk / "model.onnx"), str(desk / "ref.npz"), tmp_path / "work"
    work.mkdir()
    (work / "model.onnx").write_bytes((desk / "model.onnx").read_bytes())
    (work / "card.toml").write_text('owner = "ann"\nclassification = "internal"\n')
    (work / "new").write_text("another passphrase of words\n")
    (work / "recovery").write_text(recovery)
    run("init", str(tmp_path / "second"), cli=Cli(tmp_path / "second", desk / "pass"), secret=("password", "recovery"))
    run("upgrade")
    run("publish", str(work / "model.onnx"), "--name", "risk", "--reference", reference)
    run("log-probes", reference, "--model", "risk@2")
    run("verify", "risk@2")
    run("verify", str(work / "model.onnx"), "--oms", str(work / "model.onnx.sig"))
    run("export", "risk@2", "--out", str(work / "again.onnx"))
    run("scan", str(work / "model.onnx"))
    run("scan", "--release", "risk@2")
    for words in ("list", "show risk@1", "promote risk@2", "quarantine risk@2 --reason why", "reinstate risk@2 --reason why"):
        run(*words.split())
    for words in ("alias set risk champion 1", "alias list risk", "alias history risk champion", "alias remove risk champion"):
        run(*words.split())
    run("metadata", "set", "risk@1", str(work / "card.toml"))
    run("metadata", "show", "risk@1")
    run("hold", "add", "risk@2", "--reason", "why")
    held = run.cli("--json", "hold", "list", code=0).json[0]
    run("hold", "list")
    run("hold", "remove", next(value for name, value in held.items() if name in {"id", "hold"}), "--reason", "why")
    run("retire", "risk@2", "--reason", "why")
    run("collect", "--dry-run")
    datasets(run, work)
    dependencies(run, work)
    evidence(run, desk, work)
    people(run)
    keys(run, work)
    files(run, work, model)
    run("config", "show")
    run("config", "check")
    run("shares", "make", "--threshold", "2", "--shares", "2", "--out-dir", str(work))
    for path in work.glob("share-*.txt"):
        run.canaries.word("share", path.read_text().strip())
    run("unsealing", "list")
    run("unsealing", "drop", "shares")
    logs(run, desk, work)
    run("trace", model, "--model", "risk@1", "--report", str(work / "report"))
    run("trace-check", str(work / "report"), "--trust", str(run.cli.keep / "trust.toml"), "--suspect", model)
    ownership(run, work)
    laboratory(run, work)
    run("keys", "compromise", "statement-signing", "1", "--since", "3", "--reason", "why")
    run("trust", "resign", "risk@1")
    run("keys", "recover", "--identity-file", str(work / "recovery"), "--new-passphrase-file", str(desk / "pass"))
    run("keys", "passwd", "--new-passphrase-file", str(work / "new"))


def ownership(run, work):
    model, reference, rivals = str(work / "network.onnx"), str(work / "rows.npz"), work / "rivals"
    x, y = rows(5, 100)
    np.savez(reference, x=x, y=y)
    rivals.mkdir()
    for seed in range(20):
        (rivals / f"{seed}.onnx").write_bytes(independent(seed).onnx())
    for seed, path in ((20, "network.onnx"), (21, "suspect.onnx")):
        (work / path).write_bytes(independent(seed).onnx())
    mine, trigger, among = str(work / "mine"), str(work / "trigger"), ("--population", str(rivals))
    run("fingerprint", "make", model, "--reference", reference, "--out", mine, "--probes", "50")
    run("fingerprint", "check", str(work / "suspect.onnx"), "--fingerprint", mine, *among)
    run("trigger", "mark", reference, "--out", str(work / "marked.npz"), "--trigger", trigger)
    run("trigger", "commit", model, "--trigger", trigger)
    run("trigger", "verify", str(work / "suspect.onnx"), "--trigger", trigger, "--rows", reference, *among)
    secret, marked = np.random.default_rng(3).bytes(32), str(work / "weights.onnx")
    (work / "key.hex").write_text(secret.hex() + "\n")
    run.canaries.key("key of the mark in weights", secret)
    whose = ("--key-file", str(work / "key.hex"), "--owner", "ann")
    run("watermark", "embed", str(work / "model.onnx"), *whose, "--out", marked)
    run("watermark", "verify", marked, *whose)
    for path in (mine, trigger):
        run.canaries.key(f"key of the {Path(path).name}", load(Path(path).read_bytes())["key"].tobytes())


def laboratory(run, work):
    model, data = str(work / "network.onnx"), str(work / "known.npz")
    rng, (x, y) = np.random.default_rng(6), rows(5, 40)
    np.savez(data, x=x, y=y)
    ages = [f"{age:.3f},{rng.normal():.3f}" for age in rng.normal(40, 9, 60)]
    for name, lines in (("ages", ages), ("twice", [*ages, ages[0], ages[0], ages[0]])):
        (work / f"{name}.csv").write_text("\n".join(["age,balance", *lines, ""]))
    run("data", "check", str(work / "ages.csv"), "--quick")
    run.cli("data", "check", str(work / "twice.csv"), "--quick", "--quarantine", str(work / "doubtful.json"))
    run("data", "purge", str(work / "twice.csv"), "--quarantine", str(work / "doubtful.json"), "--out", str(work / "once.csv"))
    run("evaluate", model, "--data", data, "--attack", "square", "--queries", "5", "--rows", "10")
    run("privacy", "budget", "loans", "--epsilon", "8", "--delta", "1e-5")
    run("privacy", "ledger", "loans")


def datasets(run, work):
    (work / "loans.csv").write_text("id,income\n1,2.5\n")
    (work / "copy.py").write_text("import sys\nsys.stdout.write(open(sys.argv[1]).read())\n")
    run("data", "add", "loans", str(work / "loans.csv"), "--purpose", "scoring")
    run("data", "add", "loans", str(work / "loans.csv"), "--from", "loans@1", "--step", str(work / "copy.py"))
    run("data", "list")
    for verb in ("grant", "revoke"):
        run("data", verb, "loans", "alice", "--purpose", "scoring")
    run("data", "show", "loans")
    run("data", "open", "loans@1", "--purpose", "scoring", "--out", str(work / "loans-again.csv"))
    run("data", "lineage", "loans@2")
    run("data", "lineage", "loans@2", "--purpose", "scoring", "--croissant", str(work / "loans.json"))
    run("data", "replay", "loans@2", "--step", str(work / "copy.py"), "--purpose", "scoring", "--unconfined")
    run("data", "remove", "loans@1", "--reason", "why")


def dependencies(run, work):
    (work / "all.zip").write_bytes(snapshot(datetime.datetime.now(datetime.UTC).isoformat()))
    (work / "lock.txt").write_text("numpy==2.1.0\n")
    run("intel", "import", str(work / "all.zip"))
    run("intel", "show")
    run("intel", "check", "risk@1", "--lock", str(work / "lock.txt"))
    run("bom", "risk@1", "--record")
    (work / "seen.csv").write_text("kind,value\naddress,192.0.2.0/24\n")
    run("intel", "indicate", str(work / "seen.csv"), "--source", "partners")
    run("intel", "indicators")
    run("intel", "forget", "partners")


def evidence(run, desk, work):
    made = str(work / "trained.onnx")
    run("run", "--no-code", "--output", made, "--", "cp", str(desk / "model.onnx"), made)
    (work / "dp.json").write_text('{"epsilon": 3.0, "delta": 1e-5, "accountant": "prv"}')
    run("attest", "risk@1", "--type", "privacy", str(work / "dp.json"))
    run("approve", "risk@1", "--reason", "nobody in particular may")
    for words in (
        "set admission open --reason why",
        "show admission",
        "history admission",
        "check risk@1 --as-promoted",
        "explain risk@1",
    ):
        run("policy", *words.split())


def people(run):
    run("user", "add", "carol", "--role", "analyst", secret=("password",))
    for words in ("user list", "user role carol --role data_scientist", "user disable carol", "user enable carol", "key list"):
        run(*words.split())
    issued = run("key", "issue", "carol", secret=("token",)).json
    run("key", "rotate", issued["id"], secret=("token",))
    run("key", "revoke", issued["id"])
    for words in ("mfa show carol", "mfa require carol", "mfa reset carol", "step-up approve carol", "session list"):
        run(*words.split())
    run("session", "revoke", "carol")
    run("cert", "add", "carol", "sha256:" + "a" * 64)
    run("cert", "list")
    run("cert", "remove", "sha256:" + "a" * 64)
    run("review", "carol", "--outcome", "cleared", "--reason", "why")


def keys(run, work):
    run("keys", "list")
    run("keys", "inventory")
    run("keys", "new", f"file:{work / 'ring'}")
    run("keys", "rotate", "model-kek", "--keep-old")
    for words in (
        "keys disable model-kek 1",
        "keys enable model-kek 1",
        "keys disable model-kek 1",
        "keys destroy model-kek 1",
    ):
        run(*words.split())
    run("keys", "cancel", "model-kek", "1")
    run("keys", "rotate", "oms-signing")
    run("keys", "rotate", "statement-signing")
    run("keys", "compromise", "model-kek", "2", "--reason", "why")
    run("keys", "compromise", "oms-signing", "1", "--reason", "why")
    run("trust", "show")
    run("trust", "show", "--oms-key")
    run("trust", "add", str(work.parent / "second" / "trust.toml"), "--releases", "fraud-*", "--may-sign", "release")
    other = next(row["name"] for row in run.cli("--json", "trust", "show", code=0).json if "fraud-*" in row["releases"])
    run("trust", "limit", other, "--releases", "fraud-cards")
    run("trust", "remove", other)


def files(run, work, model):
    run("keygen", "-o", str(work / "ann.key"))
    run.canaries.word("identity", (work / "ann.key").read_text().strip().splitlines()[-1])
    made = run.cli("--json", "keygen", "-y", str(work / "ann.key"), code=0)
    recipient = next(word.strip('",') for word in made.out.split() if "recipient" in word and len(word) > 60)
    sealed = str(work / "copy.keep")
    run("seal", model, "-r", recipient, "-o", sealed)
    run("inspect", sealed)
    run("open", sealed, "-i", str(work / "ann.key"), "-o", str(work / "opened"))
    run("rewrap", sealed, "-i", str(work / "ann.key"), "-r", recipient)
    run("reencrypt", sealed, "-i", str(work / "ann.key"))


def logs(run, desk, work):
    run("log", "verify")
    run("log", "show")
    run("log", "prove", "risk@1", "--out", str(work / "proof"))
    run("log", "check", str(work / "proof"), "--trust", str(run.cli.keep / "trust.toml"))
    run("log", "erase", "--subject", "carol")
    run("log", "erasures")
    run("log", "archive", "--closed-before", "2999-01-01", "--to", str(work / "shelf"))
    run("log", "archived")
    run("backup", "create", str(work / "keep.backup"))
    run("backup", "verify", str(work / "keep.backup"))
    run("backup", "restore", str(work / "keep.backup"), str(work / "restored"), "--no-later-erasures")
    run("status")
    run("cases")
    run("account", "list")
    run("account", "explain", "admin")
    run("calibrate", "risk@1", "--tool", str(desk / "ref.npz"), "--dry-run")
    run("integrity")
    run("incident", "list")
    for found in run.cli("--json", "incident", "list", code=0).json:
        if found["state"] != "resolved":
            run("incident", "resolve", found["id"], "--note", "why")


# -- errors that nobody foresaw --

BREAKS = (
    "modelkeep.custody.keyring.unpack_bytes",
    "modelkeep.custody.keyring.SetPassphrase.unwrap",
    "modelkeep.custody.oms.BundleSigner.sign",
    "modelkeep.crypto.signatures.StatementSigner.sign",
    "modelkeep.custody.opinions.weigh",
    "modelkeep.ledger.log.ReleasesLog.append",
)


@pytest.mark.parametrize("place", BREAKS)
def test_an_unforeseen_error_says_no_secret(place, cli, desk, tmp_path, monkeypatch, capfd):
    """A bug in the middle of publishing, with every key open: what Python prints of it, and what a signal handler would."""
    canaries = Canaries()
    canaries.word("passphrase", PASSPHRASE)
    key_canaries(Keep.open(cli.keep, PASSPHRASE.encode()), canaries)
    (tmp_path / "m.onnx").write_bytes((desk / "model.onnx").read_bytes())

    def broken(*_arguments, **_options):
        with (tmp_path / "frames").open("w") as file:
            faulthandler.dump_traceback(file)
        raise RuntimeError("a bug")

    monkeypatch.setattr(place, broken)
    told = []
    with contextlib.suppress(RuntimeError):
        try:
            cli("publish", str(tmp_path / "m.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"))
        except RuntimeError as bug:
            told += traceback.format_exception(bug)
            told.append(repr(bug))
            raise
    assert (tmp_path / "frames").exists(), "the place was never reached"
    assert told, "the bug was swallowed"
    out, err = capfd.readouterr()
    assert not canaries.found("".join(told) + (tmp_path / "frames").read_text() + out + err)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:40] + bytes(40) + data[80:], lambda _data: b"", lambda data: data + b"x"],
    ids=["cut", "zeroed", "empty", "longer"],
)
def test_no_chain_of_causes_quotes_a_secret(damage, alive):
    """What is refused deep inside keeps its causes for a traceback: none of them may quote what it choked on."""
    held, canaries = alive
    keyring = next(thing for thing in held if isinstance(thing, Keyring))
    wire = next(thing for thing in held if isinstance(thing, bytes))
    for attempt in (
        lambda: Keyring.receive(damage(keyring.hand_over(FAMILIES))),
        lambda: decode(damage(wire)),
        lambda: Unlocked.receive(damage(next(t for t in held if isinstance(t, Keep)).premises.unlocked.hand_over())),
        lambda: Compartment.parse(damage(keyring._compartments["model-kek"].encode()), "model-kek"),
        lambda: BundleSigner(damage(keyring.secret("oms-signing"))),
    ):
        with pytest.raises((NotTrusted, Invalid)) as refusal:
            attempt()
        said = "".join(traceback.format_exception(refusal.value)) + repr(refusal.value.__cause__)
        assert not canaries.found(said)
