"""Who signed a git commit: git's own verification, in a repository that holds this commit and nothing else.

Only keys that the keep was given count: an ssh allowed-signers file, a GnuPG home. No configuration of any repository, user or
machine is read, so none can name another verifier. Sources: git documentation, git-log (pretty formats) and signature-format.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modelkeep.adapters.git import clean_environment, git, object_name
from modelkeep.errors import Invalid, Missing, Unavailable

GOOD, BAD, UNKNOWN, NONE = "good", "bad", "unknown", "none"
MAX_COMMIT = 256 << 10
_FORMAT = "%G?%x00%GS%x00%GF"
_SIGNATURE = re.compile(rb"^gpgsig(?:-sha256)? -----BEGIN ([A-Z ]+)-----$", re.MULTILINE)


@dataclass(frozen=True)
class CommitSignatures:
    """Verifies commits. ``allowed_signers``: an ssh allowed-signers file; ``gnupg_home``: a GnuPG home with public keys."""

    allowed_signers: Path | None = None
    gnupg_home: Path | None = None

    def check(self, commit: str, raw: bytes) -> tuple[str, str]:
        """How the commit named ``commit``, whose object is ``raw``, is signed, and by whom.

        ``good``: by one of the keys that were given; ``bad``: the signature does not hold, or its key was revoked;
        ``unknown``: signed, and no key that was given says whether it holds; ``none``. Raises Invalid (not that commit),
        Missing (a key file that is named is not there), Unavailable.
        """
        algorithm = "sha1" if len(commit) == 40 else "sha256"
        if len(raw) > MAX_COMMIT or object_name("commit", raw, algorithm) != commit:
            raise Invalid(f"what was sent as the git commit {commit[:80]} is another object, or none")
        kinds = _SIGNATURE.findall(raw.partition(b"\n\n")[0])
        if len(kinds) != 1:
            return (BAD, "") if kinds else (NONE, "")
        if kinds[0] == b"SSH SIGNATURE" and self.allowed_signers is not None:
            return self._verify(commit, raw, algorithm, ssh=True)
        if kinds[0] in (b"PGP SIGNATURE", b"PGP MESSAGE") and self.gnupg_home is not None:
            return self._verify(commit, raw, algorithm, ssh=False)
        return UNKNOWN, ""

    def _verify(self, commit: str, raw: bytes, algorithm: str, *, ssh: bool) -> tuple[str, str]:
        program = "ssh-keygen" if ssh else "gpg"
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed, and the commit {commit} is signed for it: install it")
        signers, home = self._given(self.allowed_signers), self._given(self.gnupg_home)
        with tempfile.TemporaryDirectory(prefix="modelkeep-git-") as folder:
            plain = clean_environment(GIT_DIR=folder, **({"GNUPGHOME": home} if home else {}))
            made = git(["init", "--quiet", "--bare", "--template=", f"--object-format={algorithm}"], plain)
            if made.returncode:
                raise Unavailable(f"git cannot make a repository: {made.stderr.decode('utf-8', 'replace')[:200]}")
            kept = git(["hash-object", "-t", "commit", "-w", "--stdin"], plain, given=raw)
            if kept.returncode or kept.stdout.decode().strip() != commit:
                raise Invalid(f"the git commit {commit} is malformed: git does not take it")
            keys = ["-c", f"gpg.ssh.allowedSignersFile={signers}"] if signers else []
            asked = git([*keys, "log", "--no-walk", f"--format={_FORMAT}", commit], plain)
        said = asked.stdout.decode("utf-8", "replace").rstrip("\n").split("\0")
        if asked.returncode or len(said) != 3:
            raise Unavailable(f"git cannot verify the commit {commit}: {asked.stderr.decode('utf-8', 'replace')[:200]}")
        verdict, signer, key = said
        # U from gpg: good, by a key that nobody vouched for; every key in this home was put there to be believed. U from ssh:
        # good, by a key that no line of the allowed signers has.
        counts = verdict == "G" or (verdict == "U" and not ssh)
        if counts and (signer or key):
            return GOOD, (signer or key)[:200]
        return (BAD, "") if verdict in ("B", "R", "X") else (UNKNOWN, "")

    def _given(self, path: Path | None) -> str:
        if path is None:
            return ""
        if not path.exists():
            raise Missing(f"{path}, which [provenance] of modelkeep.toml names, is not there")
        return str(path.resolve())
