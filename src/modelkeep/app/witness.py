"""A witness on disk: a folder of its own with its keys and its memory. It needs no keep."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.folders import sync_folder
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.app.witnessresults import WitnessMade, WitnessSaw
from modelkeep.crypto.cosignatures import KINDS, SEED_SIZE, Cosigner
from modelkeep.crypto.notes import NoteVerifier, check_name, parse_checkpoint, split_note
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.witness import Witness, origin_folder, remembered

KEY_FILE, MEMORY = "witness.key", "logs"
LONGEST_NAME = 255
_CHECKPOINT = "/checkpoint"


class WitnessFolder:
    """The keys and the memory of one witness, opened."""

    def __init__(self, directory: Path, keys: Sequence[Cosigner]) -> None:
        self.directory, self.keys = directory, tuple(keys)
        self._files = FolderLogFiles(directory / MEMORY)

    @classmethod
    def make(cls, directory: Path, name: str) -> Self:
        """Make a witness called ``name`` in a new folder, with one key of each kind. Raises Invalid, Conflict, Unavailable."""
        if len(check_name(name).encode()) > LONGEST_NAME:
            raise Invalid(f"the name of a witness has at most {LONGEST_NAME} bytes")
        keys = [Cosigner(name, SystemEntropy().token(SEED_SIZE), kind) for kind in KINDS.values()]
        lines = [
            f"# Keys of the witness {name}: keep them secret, and never use a copy of this folder.",
            *(k.secret() for k in keys),
        ]
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise Conflict(f"{directory} is not empty; nothing was touched: name a new folder")
            directory.chmod(0o700)
            descriptor = os.open(directory / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write("\n".join(lines) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(directory)
        except OSError as cause:
            raise Unavailable(f"cannot make a witness in {directory}: {cause.strerror}") from cause
        return cls(directory, keys)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a witness. Raises Missing, NotTrusted (open to others), Invalid (no keys), Unavailable."""
        path = directory / KEY_FILE
        try:
            for one in (directory, path):
                found = one.stat()
                if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
                    raise NotTrusted(f"{one} is open to others: make it your own and take their permissions away")
            text = path.read_text("ascii")
        except FileNotFoundError:
            raise Missing(f"there is no witness in {directory}: make one with 'modelkeep witness init {directory}'") from None
        except UnicodeDecodeError as cause:
            raise Invalid(f"{path} does not hold the keys of a witness") from cause
        except OSError as cause:
            raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
        keys = [Cosigner.parse(line) for line in text.splitlines() if line and not line.startswith("#")]
        if not keys or len({key.name for key in keys}) > 1:
            raise Invalid(f"{path} does not hold the keys of one witness")
        return cls(directory, keys)

    def made(self) -> WitnessMade:
        """Its name and verifier keys."""
        return WitnessMade(str(self.directory), self.keys[0].name, tuple(key.verifier.vkey for key in self.keys))

    @contextmanager
    def running(self, vkeys: Sequence[str]) -> Iterator[Witness]:
        """The witness of the logs whose verifier keys are ``vkeys``; no other process may run it meanwhile.

        Its memory of these logs is checked first. Raises Invalid (no log, or a malformed key), Conflict (it runs already),
        NotTrusted (its memory is damaged), Unavailable.
        """
        logs: dict[str, list[NoteVerifier]] = {}
        for vkey in dict.fromkeys(vkeys):
            verifier = NoteVerifier.parse(vkey)
            logs.setdefault(verifier.name, []).append(verifier)
        if not logs:
            raise Invalid("a witness needs to know a log: name the verifier key of one with --log")
        with self._files.lock(wait=False):
            for saw in self.saw():
                if saw.problem and any(saw.folder == origin_folder(origin) for origin in logs):
                    raise NotTrusted(saw.problem)
            yield Witness(self._files, self.keys, logs, SystemClock())

    def saw(self) -> tuple[WitnessSaw, ...]:
        """What it remembers, by log. Raises Unavailable."""
        paths = self._files.paths()
        folders = [path.removesuffix(_CHECKPOINT) for path in paths if path.endswith(_CHECKPOINT)]
        return tuple(self._saw(folder, f"{folder}/refused" in paths) for folder in folders)

    def _saw(self, folder: str, refused: bool) -> WitnessSaw:
        note = self._files.read(folder + _CHECKPOINT)
        try:
            origin = parse_checkpoint(split_note(note)[0]).origin
            if origin_folder(origin) != folder:
                raise NotTrusted(f"what this witness remembers of the log {origin} stands in the folder of another log")
            found, at = remembered(note, origin, self.keys)
        except NotTrusted as cause:
            return WitnessSaw(folder, "", 0, "", 0, refused, str(cause))
        return WitnessSaw(folder, origin, found.size, found.root.hex(), at * 10**9, refused, "")
