"""What every command gets: where the keep is (a folder or a server), how to unlock it, where to print."""

import contextlib
import datetime
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from modelkeep.cli.output import Output
from modelkeep.errors import Invalid, Missing, ModelkeepError, Unavailable

if TYPE_CHECKING:  # a keep brings the whole house in, and sealed files need none
    from modelkeep.app.keep import Keep
    from modelkeep.custody.keyring import Unlocked

P = ParamSpec("P")
R = TypeVar("R")

MOST_FILES, MOST_BYTES = 1000, 4 << 30
"""Of a folder that is read whole."""
DIRECTORY, SERVER, PASSPHRASE_FILE = "MODELKEEP_DIR", "MODELKEEP_SERVER", "MODELKEEP_PASSPHRASE_FILE"


class Context:
    """One invocation. ``keep`` opens the folder on first use; ``call`` runs a verb there or on the server."""

    def __init__(self, *, directory: str, server: str, passphrase_file: str, json: bool) -> None:
        self.directory = Path(directory)
        self.server = server
        self.out = Output(json=json)
        self._passphrase_file = passphrase_file
        self._keep: Keep | None = None

    @property
    def keep(self) -> "Keep":
        """The keep in the folder, acted on as ``operator@local``. Raises Missing, NotTrusted, Invalid."""
        from modelkeep.app.keep import Keep

        if self._keep is None:
            self._keep = Keep.open(self.directory, self.passphrase)
        return self._keep

    def unsealed(self, unlocked: "Unlocked") -> None:
        """Open the keep with what unsealed this process, from now on."""
        from modelkeep.app.keep import Keep
        from modelkeep.app.premises import Premises
        from modelkeep.app.unsealing import no_passphrase

        self._keep = Keep(Premises.open(self.directory, no_passphrase, unlocked=unlocked))

    @property
    def passphrase_given(self) -> bool:
        """Whether a file with the passphrase was named."""
        return bool(self._passphrase_file)

    def may_ask(self) -> bool:
        """Whether the passphrase is in a file, or can be asked for on a terminal."""
        return bool(self._passphrase_file) or sys.stdin.isatty()

    def call(self, verb: "Callable[Concatenate[Keep, P], R]", *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``verb`` on the folder, or as the logged-in account on ``--server``. Raises Invalid for what is no text."""
        for name, given in kwargs.items():
            if any("\ud800" <= c <= "\udfff" for c in _text(given)):  # how Python shows bytes that are no UTF-8
                raise Invalid(f"{name} is not UTF-8 text: {given!a}")
        if not self.server:
            found = verb(self.keep, *args, **kwargs)
            self._have_witnessed()
            return found
        from modelkeep.cli.remote import Remote

        result: Any = Remote.of_session(self.server).call(verb, kwargs)
        return result  # type: ignore[no-any-return]  # Remote decodes to the verb's own return type

    def _have_witnessed(self) -> None:
        """Ask the witnesses once, when something was logged: what they do not cosign now, control asks for again."""
        here = self.keep.premises
        if not (here.settings.witness.policy and here.logged.is_set()):
            return
        try:
            report = self.keep.ask_witnesses(self.keep.cosigning())
        except ModelkeepError as cause:
            self.out.note(f"logged, and not witnessed: {cause}")
            return
        if report.witnessed < report.log_size or any(row.contradicts for row in report.witnesses):
            late = "; ".join(f"{row.name}: {row.problem}" for row in report.witnesses if row.problem)
            self.out.note(f"logged, and waiting for witnesses ({late})")

    def local(self, what: str) -> "Keep":
        """The keep in the folder, for what cannot be done from afar. Raises Invalid with ``--server``."""
        if self.server:
            raise Invalid(f"{what} works on the folder only: leave out --server and run it where the keep is")
        return self.keep

    def passphrase(self) -> bytes:
        """The passphrase: from the file named, or asked for on a terminal. Raises Missing, Unavailable."""
        if self._passphrase_file:
            return read_secret_file(self._passphrase_file)
        return self.ask("Passphrase of this keep", f"--passphrase-file or {PASSPHRASE_FILE}")

    @staticmethod
    def terminal() -> bool:
        """Whether somebody is there to be asked."""
        return sys.stdin.isatty()

    def ask(self, prompt: str, instead: str, *, confirm: bool = False, empty: bool = False) -> bytes:
        """Ask for a secret on the terminal; ``empty``: it may be nothing. Raises Missing where there is none; ``instead``: the
        option that names a file."""
        if not self.terminal():
            raise Missing(f"{prompt[0].lower()}{prompt[1:]}: no terminal to ask for it, so name a file with {instead}")
        default = "" if empty else None
        found = click.prompt(prompt, default, hide_input=True, confirmation_prompt=confirm, err=True, show_default=False)
        return str(found).encode()

    def first_passphrase(self) -> bytes:
        """The passphrase of a keep to be made. Raises Invalid, Missing, Unavailable."""
        return self.new_passphrase("New passphrase for this keep", self._passphrase_file, "--passphrase-file")

    def new_passphrase(self, prompt: str, file: str, option: str) -> bytes:
        """A new passphrase, typed twice or from the ``file`` that ``option`` named; at least 8 characters. Raises Invalid."""
        passphrase = read_secret_file(file) if file else self.ask(prompt, option, confirm=True)
        if len(passphrase) < 8:
            raise Invalid("a passphrase has at least 8 characters: it is all that stands between a thief and the keys")
        return passphrase


def _text(given: object) -> str:
    """All that is text in an argument of a verb."""
    if isinstance(given, str):
        return given
    return "".join(map(_text, given)) if isinstance(given, list | tuple) else ""


def parse_parameters(given: tuple[str, ...]) -> dict[str, str]:
    """What ``NAME=VALUE`` options say. Raises Invalid (another form, or a name twice)."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            raise Invalid(f"{text[:80]!r} is no parameter: write it once, as NAME=VALUE")
        found[name] = value
    return found


def read_secret_file(path: str) -> bytes:
    """A secret from a file, without a final newline. Raises Missing, Invalid, Unavailable."""
    return read_file(path).rstrip(b"\r\n")


def read_file(path: str) -> bytes:
    """A file that the user named. Raises Missing, Invalid (a folder, or not his to read), Unavailable."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"there is no file {path}") from None
    except IsADirectoryError:
        raise Invalid(f"{path} is a folder: name a file") from None
    except PermissionError:
        raise Invalid(f"{path} is not yours to read: change its mode or its owner, or run this as its owner") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


@contextlib.contextmanager
def new_file(path: str, *, mode: int = 0o600, room: int = 0) -> Iterator[Callable[[bytes], None]]:
    """A file that must not exist yet; what is yielded has it appear with these bytes in it, whole, or not at all.

    ``room``: bytes of the disk to take at once. A secret that is shown once is lost when it cannot be written, so whoever makes
    one asks for its file first. Raises Invalid (it exists, or may not stand there), Missing (no such folder), Unavailable.
    """
    target = Path(path)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    with _told(path):
        _check_free(target)
        stream = os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")

    def write(data: bytes) -> None:
        with _told(path):
            stream.write(data)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
            _check_free(target)
            fresh.rename(target)

    try:
        if room:
            with _told(path):
                os.posix_fallocate(stream.fileno(), 0, room)
        yield write
    finally:
        with contextlib.suppress(OSError):  # what could not be written is tried again, and was told already
            stream.close()
        fresh.unlink(missing_ok=True)


def write_file(path: str, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file that must not exist yet, whole or not at all. Raises Invalid, Missing, Unavailable."""
    with new_file(path, mode=mode) as write:
        write(data)


def check_new_folder(path: str) -> None:
    """Raises Invalid (something is there already), Missing (there is no folder to make it in)."""
    _check_free(Path(path))
    if not Path(path).absolute().parent.is_dir():
        raise Missing(f"cannot write {path}: there is no folder {Path(path).parent}")


def write_folder(path: str, files: Mapping[str, bytes]) -> None:
    """A folder that must not exist yet with ``files`` by name in it, whole or not at all.

    Raises Invalid, Missing, Unavailable.
    """
    target = Path(path)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with _told(path):
            _check_free(target)
            fresh.mkdir(mode=0o700)
            for name, data in files.items():
                with os.fdopen(os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            _check_free(target)
            fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_folder(path: str) -> dict[str, bytes]:
    """The files of a small folder by name. Raises Missing, Invalid (much more than a report has), Unavailable."""
    folder = Path(path)
    if not folder.is_dir():
        raise Missing(f"there is no folder {path}")
    try:
        found = [one for one in sorted(folder.iterdir()) if one.is_file()]
        if len(found) > MOST_FILES or sum(one.stat().st_size for one in found) > MOST_BYTES:
            raise Invalid(f"{path} holds more than a report does: name the folder of one")
        return {one.name: one.read_bytes() for one in found}
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


def _check_free(target: Path) -> None:
    if target.exists():
        raise Invalid(f"{target} exists: name another or remove it first")


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    folder = Path(path).parent
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"cannot write {path}: there is no folder {folder}") from None
    except PermissionError:
        raise Invalid(f"cannot write {path}: the folder {folder} is not yours to write to") from None
    except OSError as cause:
        raise Unavailable(f"cannot write {path}: {cause.strerror}") from cause


def moment(nanoseconds: int) -> str:
    """A Unix time in nanoseconds as people read it, in UTC."""
    if not nanoseconds:
        return "-"
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
