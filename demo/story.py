"""The story in eight steps; the third is in demo/training.py. Each is a function of the stage, and checks what must hold."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np

from demo import train
from demo.clients import HonestClient, crowd
from demo.findings import ModelCard, Suspect
from demo.receipts import Receipts, reckon
from demo.report import SIGNIFICANCE
from demo.shell import CommandFailed, Service, wait_ready
from demo.stage import Stage
from demo.thieves import Thief, copy_of, measure, patient, plots, undefended
from modelkeep import Keep
from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.core.values import Role
from modelkeep.errors import ModelkeepError, Quarantined, Unavailable

COPYIST_BUDGET = 700
LOAD_CLIENTS = 6


def train_models(stage: Stage) -> None:
    """Step 1: two real models. The attacks with no defence begin at once, in a process of their own."""
    stage.show.step("1  Two models worth stealing")
    for victim in (train.tumour(), train.digits()):
        stage.victims[victim.name] = victim
        (stage.folder / f"{victim.name}.onnx").write_bytes(victim.onnx)
        stage.rows_file(f"{victim.name}-reference", victim.reference)
        stage.show.say(f"{victim.name}: {victim.title}; right on {victim.accuracy:.1%} of unseen rows")
    stage.plots = plots(stage.victims["tumour"], stage.victims["digits"])
    for plot in stage.plots:
        stage.bare[plot.name] = stage.helpers.submit(undefended, plot.portable())
    victim = stage.victims["digits"]
    stage.independent = stage.helpers.submit(copy_of, victim.train, np.eye(victim.classes)[victim.train_truth])


def make_keep(stage: Stage) -> None:
    """Step 2: a keep, two releases, 24 accounts, and both processes up."""
    stage.show.step("2  A keep: sealed, signed, logged, admitted, served")
    shell, show = stage.shell, stage.show
    made = shell.run("init", str(stage.keep))
    show.say(f"keep {made['origin']} made; {made['admin']} has a one-time password, the recovery identity goes offline")
    for name, victim in stage.victims.items():
        done = shell.run(
            "publish",
            str(stage.folder / f"{name}.onnx"),
            "--name",
            name,
            "--reference",
            str(stage.folder / f"{name}-reference.npz"),
        )
        stage.sealed[name] = done["sealed_digest"]
        shell.run("promote", done["ref"])
        size = _blob(stage, name).stat().st_size
        stage.found.models.append(
            ModelCard(done["ref"], victim.title, victim.accuracy, done["model_digest"], done["log_index"], size)
        )
        show.say(f"{done['ref']} scanned, sealed, signed, logged as entry {done['log_index']}, promoted")
    checked = [shell.run("verify", stage.release(victim)) for victim in stage.victims.values()]
    entries = max(one["tree_size"] for one in checked)
    show.check("Both releases verify", len(checked) == 2, f"signed, sealed, and included in a log of {entries} entries")
    show_evidence(stage)
    open_accounts(stage)
    stage.up = shell.start("up")
    wait_ready(stage.url, stage.ca, stage.up)
    show.say("control and gateway are up, TLS by the keep's own authority")


def show_evidence(stage: Stage) -> None:
    """What a file holds is known without running it, and a release is judged by what stands in the log about it."""
    shell, show, victim = stage.shell, stage.show, stage.victims["tumour"]
    trap = stage.folder / "trap.pkl"
    trap.write_bytes(b"cos\nsystem\n(S'echo this must never run'\ntR.")
    (verdict,) = shell.run("scan", str(trap), expect=1)["files"]
    rules = sorted({finding["rule"] for finding in verdict["findings"]})
    show.check("A pickle that would run a command is found out, and not run", bool(rules), f"not clean: {', '.join(rules)}")
    share, rows = victim.accuracy, len(victim.exam)
    margin = 1.96 * (share * (1 - share) / rows) ** 0.5 + 0.5 / rows
    measured = {"value": share, "low": max(0.0, share - margin), "high": min(1.0, share + margin), "examples": rows}
    (stage.folder / "exam.json").write_text(json.dumps({"suite": "unseen rows", "metrics": {"accuracy": measured}}))
    ref = stage.release(victim)
    shell.run("attest", ref, "--type", "evaluation", str(stage.folder / "exam.json"))
    standard, strict = shell.run("policy", "check", ref), shell.run("policy", "check", ref, "--by", "strict", expect=1)
    unmet = [rule["says"] for rule in strict["rules"] if not rule["satisfied"]]
    show.check("The standard policy serves it", standard["admitted"], f"{len(standard['rules'])} rules, all satisfied")
    show.say(f"the strict one would not, for {len(unmet)} reasons; the first: {unmet[0]}")
    shell.run("bom", ref, "--record", "--out", str(stage.folder / "bom.json"))
    checked = shell.run("bom", ref, "--check", str(stage.folder / "bom.json"))
    show.check(
        "Its bill of materials is made again from the log", checked["later"] == 0, f"from {checked['through']} log entries"
    )


def open_accounts(stage: Stage) -> None:
    """An analyst account and an API key for everybody, through the facade: the same verbs in one process."""
    names = [client.name for client in crowd(tuple(stage.victims.values()))] + [plot.name for plot in stage.plots] + ["copyist"]
    keep = Keep.open(stage.keep, stage.passphrase.read_bytes().strip)
    for name in names:
        keep.user_add(name=name, roles=(Role.ANALYST,))
        stage.keys[name] = keep.key_issue(account=name, quota=5_000, days=1, models=()).token
    stage.show.say(f"{len(names)} accounts, each with an API key")


def run_traffic(stage: Stage) -> Thief:
    """Step 4: everybody at once over HTTPS. Returns the copyist, who was not stopped."""
    stage.show.step("4  Twenty honest clients, three thieves and one patient copyist, all at once")
    clients = crowd(tuple(stage.victims.values()))
    thieves = [Thief(plot) for plot in stage.plots]
    copyist = Thief(patient(stage.victims["digits"], COPYIST_BUDGET), pace=0.05)
    never = threading.Event()
    works = [threading.Thread(target=client.run, args=(stage.connect, never), daemon=True) for client in clients]
    works += [threading.Thread(target=thief.run, args=(stage.connect,), daemon=True) for thief in (*thieves, copyist)]
    for work in works:
        work.start()
    stage.show.watch(clients, [*thieves, copyist], lambda: any(work.is_alive() for work in works))
    _judge_clients(stage, clients)
    _judge_thieves(stage, thieves)
    return copyist


def _judge_clients(stage: Stage, clients: list[HonestClient]) -> None:
    stage.found.clients = [client.row() for client in clients]
    answered = sum(client.answered for client in clients)
    alarms = [f"{client.name}: {client.error}" for client in clients if client.alarms]
    failed = [f"{client.name}: {client.error or 'unfinished'}" for client in clients if not client.done and not client.alarms]
    changed = sum(client.changed for client in clients)
    stage.show.check("No honest account is accused", not alarms, "; ".join(alarms) or f"0 alarms on {len(clients)} accounts")
    stage.show.check("Every honest question is answered", not failed, "; ".join(failed) or f"{answered:,} answers")
    stage.show.check("No top answer is changed", not changed, f"{changed} of {answered:,} differ from the bare model")


def _judge_thieves(stage: Stage, thieves: list[Thief]) -> None:
    measured = [stage.helpers.submit(measure, thief.plot.portable(), thief.loot) if thief.loot else None for thief in thieves]
    rows = [
        thief.row(future.result() if future else None, stage.bare[thief.name].result())
        for thief, future in zip(thieves, measured, strict=True)
    ]
    stage.found.thieves = rows
    stopped = all(row.stopped == "review-required" for row in rows)
    seen = ", ".join(f"{row.attack} after {row.queries}" for row in rows)
    stage.show.check(
        "Every thief is stopped by the alarm", stopped, seen if stopped else f"{seen}: {[row.stopped for row in rows]}"
    )
    cheaper = all(row.reached < row.undefended for row in rows)
    gained = ", ".join(f"{row.reached:.0%} instead of {row.undefended:.0%}" for row in rows)
    stage.show.check("Each thief's copy is worse than with no defence", cheaper, f"fidelity {gained}")


def trace_copies(stage: Stage, copyist: Thief) -> None:
    """Step 5: a copy trained on one account's answers is traced to it; an independent model is traced to nobody."""
    stage.show.step("5  Whose copy is it?")
    loot = copyist.loot
    if loot is None or stage.independent is None:
        stage.show.check("The copyist is answered", False, copyist.error)
        return
    stolen = copy_of(loot.x, loot.probs)
    accused = _trace(stage, "stolen", "copy trained on the copyist's answers", stolen, expected="copyist")
    stage.show.check("The stolen copy is traced to its maker", accused.owner == "copyist", _told(accused))
    free = _trace(stage, "independent", "model trained without the gateway", stage.independent.result(), expected="")
    stage.show.check("An independent model is traced to nobody", not free.owner, _told(free))


def _trace(stage: Stage, name: str, title: str, model: MlpSurrogate, *, expected: str) -> Suspect:
    victim = stage.victims["digits"]
    path = stage.folder / f"{name}.onnx"
    path.write_bytes(model.onnx())
    found = stage.shell.run("trace", str(path), "--model", stage.release(victim), "--significance", str(SIGNIFICANCE))
    ranked = sorted(((one["account"], one["p"]) for one in found["accounts"]), key=lambda pair: pair[1])
    owner = ranked[0][0] if ranked and ranked[0][1] < SIGNIFICANCE else ""
    agreement = float((model.predict(victim.exam).argmax(axis=1) == victim.bare.predict(victim.exam).argmax(axis=1)).mean())
    suspect = Suspect(title, agreement, owner, expected, tuple(ranked))
    stage.found.suspects.append(suspect)
    stage.show.say(f"{title}: {found['verdict']}")
    return suspect


def _told(suspect: Suspect) -> str:
    if not suspect.p_values:
        return "no account was ranked"
    account, p = suspect.p_values[0]
    return f"{account}, p = {p:.1e}" if suspect.owner else f"smallest corrected p = {p:.2g} ({account})"


def tamper(stage: Stage) -> None:
    """Step 6: one byte of a sealed blob is flipped; the release is locked, the other goes on."""
    stage.show.step("6  Somebody edits a sealed file")
    victim, other = stage.victims["tumour"], stage.victims["digits"]
    blob = _blob(stage, victim.name)
    body = bytearray(blob.read_bytes())
    body[len(body) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(body)
    stage.show.say(f"one bit of byte {len(body) // 2:,} of {blob.name[:16]}… flipped")
    state, incident = _found_out(stage, stage.release(victim))
    held = state == "quarantined" and bool(incident)
    seen = f"{stage.release(victim)} is {state}, incident {incident or 'none'}"
    stage.show.check("The integrity pass quarantines it and opens an incident", held, seen)
    alarms = [one["id"] for one in stage.shell.run("incident", "list") if one["id"].startswith("extraction:")]
    caught = sum(row.stopped == "review-required" for row in stage.found.thieves)
    stage.show.check(
        "Every alarm is an incident, and there is no other", len(alarms) == caught, f"{len(alarms)} open for review"
    )
    locked = _ask_once(stage, "client-01", victim)
    goes_on = _ask_once(stage, "client-02", other)
    held = locked == Quarantined.code and goes_on == ""
    seen = f"{victim.name} says {locked or 'an answer'}, {other.name} says {goes_on or 'an answer'}"
    stage.show.check("The gateway locks that model and serves the other", held, seen)


def _found_out(stage: Stage, release: str, seconds: float = 15.0) -> tuple[str, str]:
    """State and integrity incident of ``release``, once both say that something is wrong or the time is over."""
    ends = time.monotonic() + seconds
    while True:
        status = stage.shell.run("status")
        state = next(row["state"] for row in status["releases"] if row["ref"] == release)
        incident = next((row["id"] for row in status["incidents"] if row["id"] == f"integrity:{release}"), "")
        if time.monotonic() > ends or (state == "quarantined" and incident):
            return state, incident
        time.sleep(0.3)


def _ask_once(stage: Stage, account: str, victim: train.Victim) -> str:
    """The code of the refusal, "" for an answer."""
    try:
        with stage.connect(account, victim) as target:
            target.predict(victim.exam[:1])
    except ModelkeepError as refusal:
        return refusal.code
    return ""


def kill_gateway(stage: Stage) -> None:
    """Step 7: SIGKILL under load, and a restart. Every answer that left is in the audit log."""
    stage.show.step("7  kill -9 under load")
    up = stage.up
    assert up is not None
    stop = threading.Event()
    accounts = [client.name for client in crowd(tuple(stage.victims.values())) if client.victim.name == "digits"][:LOAD_CLIENTS]
    works = [threading.Thread(target=_load, args=(stage, account, stop), daemon=True) for account in accounts]
    for work in works:
        work.start()
    time.sleep(1.5)
    before = _receipts(stage)
    up.kill_gateway()
    stage.show.say(f"gateway killed with {len(accounts)} clients asking; {before:,} answers are out")
    _come_back(stage, up)
    stage.show.say("gateway back; it finished the log of the one that died and replayed its evidence")
    time.sleep(1.0)
    stop.set()
    for work in works:
        work.join(15)
    stage.show.check(
        "The gateway comes back and answers", _receipts(stage) > before, f"{_receipts(stage) - before:,} answers since"
    )


def _come_back(stage: Stage, up: Service) -> None:
    """``up`` brings the gateway back itself, or ends and is started again."""
    time.sleep(1.0)
    if up.process.poll() is not None:
        stage.up = stage.shell.start("up")
    assert stage.up is not None
    wait_ready(stage.url, stage.ca, stage.up)


def _load(stage: Stage, account: str, stop: threading.Event) -> None:
    rng = np.random.default_rng(len(account))
    victim = stage.victims["digits"]
    while not stop.is_set():
        try:
            with stage.connect(account, victim) as target:
                while not stop.is_set():
                    target.predict(victim.unseen[rng.integers(len(victim.unseen), size=1)])
                    time.sleep(0.02)
        except Unavailable:
            time.sleep(0.2)
        except ModelkeepError as refusal:
            stage.show.check(f"{account} is answered under load", False, f"{refusal.code}: {refusal}")
            return


def _receipts(stage: Stage) -> int:
    return sum(map(len, stage.receipts.values()))


def audit_offline(stage: Stage) -> None:
    """Step 8, the reckoning: stop everything, copy the logs away, and check them with public keys only."""
    assert stage.up is not None
    stage.up.stop()
    copy, trust = stage.folder / "auditor", stage.folder / "trust.toml"
    shutil.copytree(stage.keep / "log", copy)
    shutil.copy(stage.keep / "trust.toml", trust)
    checked = stage.shell.run("--dir", str(stage.folder), "log", "verify", "--offline", str(copy), "--trust", str(trust))
    entries = sum(one["size"] for one in checked)
    stage.show.check(
        "The releases and audit logs verify offline", len(checked) >= 2, f"{len(checked)} logs, {entries:,} entries"
    )
    stage.found.facts.update({one["origin"]: f"{one['size']:,} entries, root {one['root'][:16]}…" for one in checked})
    kept = [Receipts(account, release, list(receipts)) for (account, release), receipts in stage.receipts.items()]
    found = reckon(copy, trust, kept)
    stage.show.check(
        "Every answer a client received is in the audit log",
        not found.missing and found.receipts > 0,
        "; ".join(found.missing[:3]) or f"{found.receipts:,} receipts, {found.records:,} records in {found.logs} logs",
    )


def _blob(stage: Stage, name: str) -> Path:
    """The file of a sealed body. Raises CommandFailed."""
    digits = stage.sealed[name].removeprefix("sha256:")
    for path in (stage.keep / "blobs").rglob(f"*{digits[-32:]}*"):
        return path
    raise CommandFailed(f"there is no sealed body {stage.sealed[name]} in {stage.keep / 'blobs'}")
