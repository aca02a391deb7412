"""What the steps of the story share: the keep, the two models, the accounts' keys, the running processes."""

from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from demo.findings import Findings
from demo.shell import Service, Shell, free_port
from demo.show import Show
from demo.thieves import Plot
from demo.train import Array, Victim
from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.adapters.targets import HttpTarget
from modelkeep.core.values import ReleaseRef
from modelkeep.workflows.attack import AttackReport

PATIENCE = 5.0
"""Seconds that a well-behaved client waits when it is asked to come back later."""


@dataclass
class Stage:
    """Filled in as the story goes on. ``sealed``: digest of the sealed body by model name; ``keys``: API key by account;
    ``helpers``: processes that train copies aside."""

    folder: Path
    show: Show
    found: Findings
    helpers: Executor
    port: int = field(default_factory=free_port)
    victims: dict[str, Victim] = field(default_factory=dict)
    sealed: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    bare: dict[str, "Future[AttackReport]"] = field(default_factory=dict)
    independent: "Future[MlpSurrogate] | None" = None
    plots: tuple[Plot, ...] = ()
    up: Service | None = None
    receipts: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.passphrase.write_text("correct horse battery staple, for a demo\n")
        self.passphrase.chmod(0o600)
        self.shell = Shell(
            self.keep,
            self.passphrase,
            MODELKEEP_GATEWAY_PORT=str(self.port),
            MODELKEEP_CONTROL_PORT=str(free_port()),
            MODELKEEP_CONTROL_INTEGRITY_SECONDS="2",
        )

    @property
    def keep(self) -> Path:
        """The keep's folder."""
        return self.folder / "keep"

    @property
    def passphrase(self) -> Path:
        """The file with the passphrase."""
        return self.folder / "passphrase"

    @property
    def ca(self) -> Path:
        """The certificate that clients trust."""
        return self.keep / "tls" / "ca.pem"

    @property
    def url(self) -> str:
        """The gateway."""
        return f"https://localhost:{self.port}"

    def release(self, victim: Victim) -> str:
        """The one release of a model."""
        return f"{victim.name}@1"

    def connect(self, account: str, victim: Victim) -> HttpTarget:
        """A client of the gateway, as ``account``. Its receipts are kept for the reckoning."""
        target = HttpTarget(self.url, ReleaseRef(victim.name, 1), self.keys[account], ca=self.ca, patience=PATIENCE)
        # one list for all connections of an account: a list may grow from several threads
        target.receipts = self.receipts.setdefault((account, self.release(victim)), [])
        return target

    def rows_file(self, name: str, rows: Array) -> str:
        """Write rows (n, d) as the npz file that the command line takes, and give its path."""
        path = self.folder / f"{name}.npz"
        np.savez(path, x=rows.astype(np.float32))
        return str(path)
