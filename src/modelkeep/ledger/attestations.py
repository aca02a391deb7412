"""What may be said about how a model came to be: predicates about the *file*, by its digest, whoever releases it later.

They name no release, so they may stand in the log before or after it. Whether their signer may speak about a name is asked when
the evidence on a release of that name is looked at (custody/dossier). Of several of one type the last one counts, but for
approvals, which add up. Shares and probabilities are 0 to 1, times Unix nanoseconds; docs/formats/statements.md has each field.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import Meta

from modelkeep.core.values import Digest, digest_of
from modelkeep.ledger.predicates import Predicate

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0)]
Count = Annotated[int, Meta(ge=0)]
Hex16 = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Commit = Annotated[str, Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})?$")]
MaybeHex16 = Annotated[str, Meta(pattern="^([0-9a-f]{32})?$")]
MaybeHex32 = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
Norm = Annotated[str, Meta(pattern="^(l1|l2|linf)?$")]
Knowledge = Annotated[str, Meta(pattern="^(white-box|black-box)?$")]
Severity = Annotated[str, Meta(pattern="^(critical|high|medium|low|unknown)$")]
SignatureFound = Annotated[str, Meta(pattern="^(good|bad|unknown|none)$")]
Verdict = Annotated[str, Meta(pattern="^(approve|reject|withdraw)$")]


class Attestation(Predicate, frozen=True, kw_only=True):
    """Base of what is said about a file. Subject: the model file (a data set's bytes for ``Dataset``)."""


class Salted(msgspec.Struct, frozen=True):
    """Data, named so that nobody can confirm a guess at it: ``digest`` is the SHA-256 of a secret 32-byte salt and the SHA-256.

    ``name``: what people call it, such as ``loans@3``; what stands before its first slash names the data set, and so the salt.
    ``files``: 0 when the data is the bytes of one file; else how many files of a folder it is, and then what was salted is the
    SHA-256 of the lines that ``sha256sum`` prints for them, sorted. Whoever is given the salt and the data can check it; once
    the salt is dropped nobody can.
    """

    name: str
    digest: Digest
    files: Count = 0


class Code(msgspec.Struct, frozen=True):
    """The state of a working tree when the run began. ``commit``: hex, "" outside version control; ``dirty``: it held changes
    that no commit has.

    ``signature``: ``good`` (verified against keys that were given), ``bad``, ``unknown`` (signed, by nobody known), ``none``;
    ``signer``: who, as the verifier names him. ``changes``: SHA-256 of the uncommitted changes, hex, "" when there are none.
    """

    repository: str = ""
    commit: Commit = ""
    dirty: bool = False
    signature: SignatureFound = "none"
    signer: str = ""
    changes: MaybeHex32 = ""


class Environment(msgspec.Struct, frozen=True):
    """What ran: Python, platform, and every installed package with its version.

    ``lock``: SHA-256 of the lines ``name==version``, sorted, each ending in a newline. ``python`` is "" when the environment is
    not known, because what ran was no Python; ``packages`` is empty then, and also when they are too many for a log entry.
    """

    python: str
    platform: str
    lock: Digest
    packages: dict[str, str] = {}

    @classmethod
    def of(cls, python: str, platform: str, packages: Mapping[str, str]) -> Self:
        """With the lock digest of ``packages``."""
        lines = sorted(f"{name}=={version}\n" for name, version in packages.items())
        return cls(python, platform, digest_of("".join(lines).encode()), dict(sorted(packages.items())))


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. ``memory``: bytes."""

    system: str
    processor: str = ""
    cores: Count = 0
    memory: Count = 0
    accelerators: tuple[str, ...] = ()


class Isolation(msgspec.Struct, frozen=True):
    """What held a training run, as the machine that ran it says: it could reach nothing but what it was given.

    ``engine``: such as ``bubblewrap 0.8.0``; ``network``: ``none``, or ``host`` when it had the machine's; ``gpu``: it had its
    GPUs; ``seccomp``: SHA-256 of the filter of its system calls; ``mounts``: SHA-256 of the lines ``kind path``, sorted, of
    what was where in its root; ``environment``: names of variables that it was given besides the usual. What all its processes
    had together, 0 = any amount: ``memory`` and ``disk`` in bytes, ``processes`` with threads, ``cpus``, ``seconds`` of time.
    ``limited_by``: ``cgroup`` (the kernel), or ``watched`` (resource limits of each process, and a look at all of them ten
    times a second).
    """

    engine: str
    network: Annotated[str, Meta(pattern="^(none|host)$")]
    seccomp: Digest
    mounts: Digest
    limited_by: Annotated[str, Meta(pattern="^(cgroup|watched)$")]
    gpu: bool = False
    environment: tuple[str, ...] = ()
    memory: Count = 0
    disk: Count = 0
    processes: Count = 0
    cpus: Amount = 0.0
    seconds: Amount = 0.0


class TrainingRun(Attestation, frozen=True, kw_only=True):
    """The file came out of a training run. ``started`` and ``ended``: Unix nanoseconds; ``run``: 32 random hex digits.

    ``command``: as it was run, with secrets as ``***``; ``inputs``: data that was declared or opened; ``outputs``: names and
    digests of every model file that the run made, the subject among them. There is one statement for each of them.
    ``isolation``: None = it ran with all that its user may reach.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:training-run:v1"
    run: Hex16
    command: tuple[str, ...]
    code: Code
    environment: Environment
    machine: Machine
    started: int
    ended: int
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    inputs: tuple[Salted, ...] = ()
    outputs: dict[str, Digest] = msgspec.field(default_factory=dict)
    isolation: Isolation | None = None


class Conversion(Attestation, frozen=True, kw_only=True):
    """The file was made from another by ``converter``, and answers as that one does. ``source``: the other's SHA-256.

    ``filename``, ``format``: of the other; ``scanner``: whose rules, in which version, found nothing in it, such as
    ``modelkeep/3``; ``versions``: of what ran. Both were asked the ``rows`` of the file ``reference``: every label was the
    same, unless the original held two for as probable, and no number differed by more than ``difference``.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:conversion:v1"
    source: Digest
    filename: str
    format: str
    scanner: str
    converter: str
    versions: dict[str, str]
    rows: Count
    reference: Digest
    difference: Amount


class Step(msgspec.Struct, frozen=True):
    """A step of preparation. ``name``: the file of its code, ``code``: its SHA-256; ``parameters``: what it was given."""

    name: str
    code: Digest
    parameters: dict[str, str] = {}


class SealedData(msgspec.Struct, frozen=True):
    """Where a keep has the data, sealed: digest and size in bytes of the body, its Merkle root, the SHA-256 of its header."""

    sealed: Digest
    root: Hex32
    header: Hex32
    size: Count


class Dataset(Attestation, frozen=True, kw_only=True):
    """A data set. Subject: its salted digest, as in ``Salted``. ``size``: bytes; ``rows``: 0 when it has none.

    ``purposes``: what it may be read for, none = what it is granted for; ``parents``: the data that ``steps`` made it of, in
    this order; ``body``: of one that a keep has sealed, which only ``modelkeep data add`` says.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:dataset:v1"
    name: str
    format: str
    size: Count
    rows: Count = 0
    licence: str = ""
    source: str = ""
    personal: bool = False
    description: str = ""
    purposes: tuple[str, ...] = ()
    parents: tuple[Salted, ...] = ()
    steps: tuple[Step, ...] = ()
    body: SealedData | None = None


class Attack(msgspec.Struct, frozen=True):
    """An attack that a model was measured under: ``name`` such as ``apgd-ce``; ``norm``: ``linf``, ``l2``, ``l1`` or "";
    ``epsilon``: its radius in that norm, in units of the input; ``knowledge``: what it is given of the model, ``white-box``
    (its gradients), ``black-box`` (its answers) or "", not said.
    """

    name: str
    norm: Norm = ""
    epsilon: Amount = 0.0
    steps: Count = 0
    knowledge: Knowledge = ""


class Measure(msgspec.Struct, frozen=True):
    """A measured value with its interval: ``low`` and ``high`` at the ``confidence``, over ``examples``."""

    value: float
    low: float
    high: float
    examples: Count
    confidence: Share = 0.95


class Evaluation(Attestation, frozen=True, kw_only=True):
    """The model was measured. ``metrics``: by name, ``accuracy`` among them; under ``attack`` when there is one.

    ``alarms``: signs that the attack failed and not the model withstood, each a word and why: such an accuracy counts as 0 at
    admission; ``seed``: of the attack; ``evaluator``: what measured, with its version.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:evaluation:v1"
    suite: str
    metrics: dict[str, Measure]
    dataset: Salted | None = None
    attack: Attack | None = None
    alarms: tuple[str, ...] = ()
    seed: int | None = None
    evaluator: str = ""


class Hardening(Attestation, frozen=True, kw_only=True):
    """The model was hardened by ``method`` (``pgd-at``, ``trades``, ...), and how accurate it is then.

    ``robust``: accuracy under ``attack``; ``clean``: without. ``source``: the file that it was made from; ``dataset``: whose
    rows it learnt from and, others of them, was measured on; ``seed``: of both; ``code``: SHA-256 of the code of both, hex;
    ``versions``: of what ran.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:hardening:v1"
    method: str
    attack: Attack
    robust: Measure
    clean: Measure
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    source: Digest | None = None
    dataset: Salted | None = None
    seed: Count = 0
    code: MaybeHex32 = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class Privacy(Attestation, frozen=True, kw_only=True):
    """The model was trained with (``epsilon``, ``delta``)-differential privacy, as ``accountant`` computed it.

    ``unit``: what one neighbour more or less is: ``example``, or ``user`` when one person gave many. ``dataset``: what it was
    trained on, whose budget it is charged to; ``run``: 32 hex digits of the run that was reserved before, "" = none was;
    ``dataset_epsilon``: what all runs on that data cost together by then, this one included, 0 = nobody knows.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:privacy:v1"
    epsilon: Amount
    delta: Share
    accountant: str
    mechanism: str = "dp-sgd"
    noise_multiplier: Amount = 0.0
    sample_rate: Share = 0.0
    steps: Count = 0
    max_grad_norm: Amount = 0.0
    unit: str = "example"
    dataset: Salted | None = None
    run: MaybeHex16 = ""
    dataset_epsilon: Amount = 0.0


class Watermark(Attestation, frozen=True, kw_only=True):
    """A watermark key of the model is committed. ``commitment``: 64 hex digits; ``scheme`` says how it is opened."""

    TYPE: ClassVar[str] = "urn:x-modelkeep:watermark:v1"
    scheme: str
    commitment: Hex32


class Fingerprint(Attestation, frozen=True, kw_only=True):
    """A fingerprint of the model was made, and nothing in the model was changed. ``commitment``: 64 hex digits that bind to its
    file, by ``scheme``; ``probes``: how many it has."""

    TYPE: ClassVar[str] = "urn:x-modelkeep:fingerprint:v1"
    scheme: str
    commitment: Hex32
    probes: Count


class Approval(Attestation, frozen=True, kw_only=True):
    """A person decided about a release: ``verdict`` is ``approve``, ``reject`` or ``withdraw``. ``id``: 32 random hex digits.

    ``actor`` is the one who decided, authenticated by this keep. The last word of each person stands.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:approval:v1"
    release: str
    verdict: Verdict
    id: Hex16
    reason: str = ""


class Advisory(msgspec.Struct, frozen=True):
    """A known vulnerability of a package. ``severity``: ``critical``, ``high``, ``medium``, ``low`` or ``unknown``.

    ``score``: CVSS base score, -1 when the advisory has none; ``fixed``: versions that are mended.
    """

    id: str
    package: str
    version: str
    severity: Severity
    score: Annotated[float, Meta(ge=-1.0, le=10.0)] = -1.0
    fixed: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class Vulnerabilities(Attestation, frozen=True, kw_only=True):
    """The packages that the model depends on were looked up in a snapshot of an advisory database.

    ``source``, ``snapshot``: which one, and the SHA-256 of its file; ``snapshot_at``: when its newest entry was changed;
    ``lock``: the packages, as in ``Environment``; ``audited``: how many were looked up; ``unaudited``: those that could not be.
    """

    TYPE: ClassVar[str] = "urn:x-modelkeep:vulnerabilities:v1"
    source: str
    snapshot: Digest
    snapshot_at: int
    lock: Digest
    audited: Count
    unaudited: tuple[str, ...] = ()
    advisories: tuple[Advisory, ...] = ()


class Bom(Attestation, frozen=True, kw_only=True):
    """A bill of materials was written. Second subject: its bytes. ``format`` such as ``CycloneDX 1.7``."""

    TYPE: ClassVar[str] = "urn:x-modelkeep:bom:v1"
    release: str
    format: str
    components: Count
    serial: str


ATTESTATIONS: dict[str, type[Attestation]] = {
    kind.TYPE: kind
    for kind in (
        TrainingRun,
        Conversion,
        Dataset,
        Evaluation,
        Hardening,
        Privacy,
        Watermark,
        Fingerprint,
        Approval,
        Vulnerabilities,
        Bom,
    )
}
"""Every type about a file, by its predicate type."""
