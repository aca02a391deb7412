"""Step 3: training data that is sealed, checked and handed over in memory, and a model that is measured and hardened."""

import shutil
import sys
from pathlib import Path
from typing import Any

from demo.findings import Stand
from demo.shell import CommandFailed
from demo.stage import Stage
from demo.train import Array, Classes

PURPOSE = ("--purpose", "reading-forms")
LABEL = ("--label", "digit")
ROWS, EXAM = "digit-rows", "digit-exam"
REACH = 1.6
"""A tenth of the range of a pixel, 0 to 16."""
_REFUSED, _UNAVAILABLE = 1, 3


def train_guarded(stage: Stage) -> None:
    """Seal, check, train apart, measure, harden, and ask the log what came of what."""
    stage.show.step("3  Before the model file: sealed data, an isolated run, a model that resists")
    folder = stage.folder / "training"
    folder.mkdir()
    _seal(stage, folder)
    _check(stage, folder)
    _train(stage, folder)
    _harden(stage, folder)
    told = str(stage.shell.run("data", "lineage", f"{ROWS}@1")["text"])
    stage.show.check("The log tells which models learnt from these rows", "by harden" in told and "run " in told, _after(told))
    for path in folder.iterdir():
        path.unlink()


def _seal(stage: Stage, folder: Path) -> None:
    victim = stage.victims["digits"]
    for name, rows, truth in ((ROWS, victim.train, victim.train_truth), (EXAM, victim.exam, victim.exam_truth)):
        path = _table(folder / f"{name}.csv", rows, truth)
        done = stage.shell.run("data", "add", name, str(path), *PURPOSE)
        stage.found.learnt[done["ref"]] = f"{done['rows']:,} rows, {done['size']:,} bytes sealed, log entry {done['log_index']}"
        path.unlink()
    stage.show.say(f"{ROWS}@1 and {EXAM}@1 sealed for reading forms; their plain files are gone")
    stage.show.check("Nobody reads the data for another purpose", *_asked_wrongly(stage, folder / "no.csv"))


def _asked_wrongly(stage: Stage, out: Path) -> tuple[bool, str]:
    """Whether a reading for another purpose is refused, and what was said."""
    try:
        stage.shell.run("data", "open", f"{ROWS}@1", "--purpose", "advertising", "--out", str(out))
    except CommandFailed as refusal:
        if refusal.code == _REFUSED:
            return not out.exists(), "refused, and the log has who asked for what"
        raise
    return False, "it was opened"


def _check(stage: Stage, folder: Path) -> None:
    """A draft that holds rows of the exam is found out; what was sealed is fit to be trained on."""
    victim = stage.victims["digits"]
    draft = _table(folder / "draft.csv", victim.exam[:60], victim.exam_truth[:60])
    against = ("--against", f"{EXAM}@1", *PURPOSE, *LABEL, "--quick")
    leaky = stage.shell.run("data", "check", str(draft), *against, expect=1)
    told = next((one["said"] for one in leaky["findings"] if one["level"] == "error"), "")
    stage.show.check("Rows of the exam in a draft of the data are found", bool(told), told.partition(";")[0])
    clean = stage.shell.run("data", "check", f"{ROWS}@1", *against)
    stage.show.check("The sealed rows are fit to be trained on", clean["clean"], f"{clean['rows']:,} rows, no leak")


def _train(stage: Stage, folder: Path) -> None:
    """Train where nothing else is within reach; on a machine that cannot do that, say so and train in the open."""
    shutil.copy(Path(__file__).with_name("recipe.py"), folder / "recipe.py")
    run = ("run", "--no-code", "--output", "reader.onnx")
    apart = ("--isolate", "--sealed", f"{ROWS}@1", *PURPOSE, "--memory", "4G", "--time", "50s")
    command = (sys.executable, "recipe.py", f"/data/{ROWS}@1/{ROWS}.csv", "reader.onnx", str(stage.keep), str(stage.port))
    try:
        done = stage.shell.run(*run, *apart, "--", *command, where=folder)
    except CommandFailed as refusal:
        if refusal.code != _UNAVAILABLE:
            raise
        stage.show.say(f"no isolated run on this machine: {refusal}")
        done = _train_open(stage, folder, run)
    else:
        stage.show.check(
            "The training reaches neither the keep nor a network",
            True,
            "it looked; its rows came in memory, sealed on disk",
        )
    stage.found.learnt["run"] = f"{done['run'][:12]}, of {', '.join(done['inputs'])}"
    stage.show.say(f"run {done['run'][:12]} recorded: {done['inputs'][0]} in, reader.onnx out")


def _train_open(stage: Stage, folder: Path, run: tuple[str, ...]) -> Any:
    plain = folder / f"{ROWS}.csv"
    stage.shell.run("data", "open", f"{ROWS}@1", *PURPOSE, "--out", str(plain))
    command = (sys.executable, "recipe.py", str(plain), "reader.onnx")
    return stage.shell.run(*run, "--input", f"{ROWS}@1/{plain.name}={plain}", "--", *command, where=folder)


def _harden(stage: Stage, folder: Path) -> None:
    box = ("--epsilon", str(REACH), "--low", "0", "--high", "16")
    reader, hardened = folder / "reader.onnx", folder / "hardened.onnx"
    before = _stand(stage, reader, "Model as trained", box)
    data = ("--data", f"{ROWS}@1", *PURPOSE, *LABEL)
    stage.shell.run("harden", str(reader), *data, *box, "--epochs", "30", "--out", str(hardened), "--log")
    after = _stand(stage, hardened, "Hardened model", box)
    held = after.attacked[1] > before.attacked[2]
    seen = f"{before.attacked[0]:.0%} of unseen digits are read right under attack, {after.attacked[0]:.0%} after hardening"
    stage.show.check("Hardening pays, beyond chance", held, seen)


def _stand(stage: Stage, model: Path, title: str, box: tuple[str, ...]) -> Stand:
    """Accuracy on the sealed exam, clean and under a black-box attack; signed and logged."""
    attack = ("--attack", "square", "--queries", "300", *box, "--log")
    found = stage.shell.run("evaluate", str(model), "--data", f"{EXAM}@1", *PURPOSE, *LABEL, *attack)
    clean, attacked = ((one["value"], one["low"], one["high"]) for one in (found["clean"], found["robust"]))
    stand = Stand(title, clean, attacked)
    stage.found.stands.append(stand)
    entries = " and ".join(map(str, found["logged"]))
    stage.show.say(f"{title.lower()}: {clean[0]:.1%} right, {attacked[0]:.1%} under attack; log entries {entries}")
    return stand


def _after(told: str) -> str:
    """What the rows went into, in one line."""
    made = [line.strip() for line in told.partition("went into\n")[2].splitlines()]
    return f"{len([one for one in made if 'sha256:' in one])} models, by run and by harden"


def _table(path: Path, rows: Array, truth: Classes) -> Path:
    """Pixels (n, 64) and digits (n,) as a CSV file."""
    head = ",".join([f"p{number}" for number in range(rows.shape[1])] + ["digit"])
    lines = [",".join(f"{value:g}" for value in row) + f",{digit}" for row, digit in zip(rows, truth, strict=True)]
    path.write_text("\n".join([head, *lines]) + "\n")
    return path
