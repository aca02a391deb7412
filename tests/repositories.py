"""Real git repositories, and keys of people who sign commits in them."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

QUIET = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@acme.eu",
    "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@acme.eu", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """A repository in ``folder``, worked on as a user does."""

    folder: Path
    environment: tuple[tuple[str, str], ...] = ()

    @classmethod
    def new(cls, folder: Path, *, algorithm: str = "sha1", **files: str) -> "Repository":
        """With one commit of train.py, or of ``files``."""
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder)
        made("init", "-q", "-b", "main", f"--object-format={algorithm}")
        for name, text in (files or {"train.py": "print('train')\n"}).items():
            (folder / name.replace("__", "/")).write_text(text)
        made.commit()
        return made

    def __call__(self, *arguments: str, given: bytes | None = None) -> str:
        """Run git; what it printed."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, env={**os.environ, **QUIET, **dict(self.environment)}, input=given,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def commit(self, *options: str) -> str:
        """Commit everything that is there; its name."""
        self("add", "-A")
        self("commit", "-q", "--allow-empty", "-m", "work", *options)
        return self("rev-parse", "HEAD")

    def write(self, name: str, text: str) -> Path:
        """A file of the working tree."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def raw(self) -> bytes:
        """The commit object of HEAD."""
        return subprocess.run(
            ["git", "cat-file", "commit", "HEAD"], cwd=self.folder, capture_output=True, check=True, env={**os.environ, **QUIET}
        ).stdout


@dataclass(frozen=True)
class SshKey:
    """An ssh key; ``signers``: an allowed-signers file that has it as ``principal``."""

    private: Path
    signers: Path
    principal: str

    @classmethod
    def new(cls, folder: Path, principal: str) -> "SshKey":
        folder.mkdir(parents=True, exist_ok=True)
        private = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private], check=True)
        kind, public, *_ = private.with_suffix(".pub").read_text().split()
        (folder / "signers").write_text(f'{principal} namespaces="git" {kind} {public}\n')
        return cls(private, folder / "signers", principal)

    def sign(self, repository: Repository) -> str:
        """Commit with this key."""
        repository("config", "gpg.format", "ssh")
        repository("config", "user.signingkey", str(self.private))
        return repository.commit("-S")


@dataclass(frozen=True)
class PgpKey:
    """A PGP key in a GnuPG ``home`` of its own."""

    home: Path
    name: str

    @classmethod
    def new(cls, home: Path, name: str) -> "PgpKey":
        home.mkdir(parents=True, mode=0o700)
        made = cls(home, name)
        made.gpg("--quick-generate-key", name, "ed25519", "sign", "never")
        return made

    def close(self) -> None:
        """End the agent that making the key has started."""
        environment = {**os.environ, "GNUPGHOME": str(self.home)}
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=environment, capture_output=True, check=False)

    def gpg(self, *arguments: str, given: bytes = b"") -> bytes:
        """Run gpg in this home."""
        done = subprocess.run(
            ["gpg", "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback", *arguments],
            env={**os.environ, "GNUPGHOME": str(self.home)}, input=given, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def public_home(self, home: Path) -> Path:
        """A GnuPG home with the public half only."""
        home.mkdir(parents=True, mode=0o700)
        PgpKey(home, self.name).gpg("--import", given=self.gpg("--export"))
        return home

    def sign(self, repository: Repository) -> str:
        """Commit with this key."""
        repository("config", "gpg.format", "openpgp")
        signing = Repository(repository.folder, (("GNUPGHOME", str(self.home)),))
        return signing.commit(f"-S{self.name}")
