"""The sections of modelkeep.toml: every setting with its default and its meaning."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from modelkeep.crypto.jose import ALGORITHMS

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
AtLeastOne = Annotated[float, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class KeepSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[keep]"""

    origin: str = ""
    """Name of this keep's logs, made by init; never change it."""
    admission: Literal["open", "standard", "strict"] = "standard"
    """Admission profile that a release must satisfy before it is served, until 'modelkeep policy set' names another."""


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[gateway]"""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8443
    """Port to listen on; 0 takes a free one."""
    grpc_port: Annotated[int, Meta(ge=-1, le=65535)] = -1
    """Port to speak gRPC on; 0 takes a free one, -1 speaks none."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes that answer, each on a core; with more than one, another keeps the state that they share."""
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Host names and addresses that the certificate made by --tls auto carries."""
    header_seconds: Positive = 5.0
    """A connection whose request headers are not complete after this long is closed."""
    body_seconds: Positive = 10.0
    """A request whose body is not complete after this long is closed."""
    max_body: Count = 4 << 20
    """Largest request body, bytes."""
    max_connections: Count = 1024
    """Connections held at once; more are closed at the door."""
    max_per_address: Count = 64
    """Connections held at once from one address; more are closed at the door."""
    drain_seconds: Positive = 10.0
    """On stop, how long requests in flight may take to finish."""
    client_ca: str = ""
    """PEM file in the keep's folder: the authorities whose client certificates count; empty = none is asked for."""
    client_certificates: Literal["optional", "required"] = "optional"
    """Whether a client must show a certificate, where ``client_ca`` names authorities."""
    certificate: str = ""
    """File with the certificate chain to show, PEM, in the keep's folder or absolute; empty = one of this keep's authority."""
    key: str = ""
    """File with its private key, PEM."""
    key_passphrase_file: str = ""
    """File with the passphrase of that key; empty = it has none."""
    tls_minimum: Literal["1.3", "1.2"] = "1.3"
    """Oldest version of TLS that is spoken."""


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[control]"""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8444
    """Port to listen on; 0 takes a free one."""
    integrity_seconds: Positive = 60.0
    """Pause between two integrity passes over the sealed blobs."""
    rescan_seconds: Positive = 3600.0
    """Pause between two looks for releases that were scanned by older rules."""
    max_upload: Count = 4 << 30
    """Largest request of the admin API (a model to publish), bytes."""
    max_connections: Count = 1024
    """Connections held at once; more are closed at the door."""
    max_per_address: Count = 64
    """Connections held at once from one address; more are closed at the door."""


class OwnLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[limits.accounts.NAME], [limits.keys.ID]: instead of what everybody has."""

    rate: NotNegative | None = None
    """Requests a second; 0 = any number."""
    burst: AtLeastOne | None = None
    """Requests at once."""
    cost_rate: NotNegative | None = None
    """Cost a second (accounts only); 0 = any."""
    cost_burst: AtLeastOne | None = None
    """Cost at once (accounts only)."""


class ModelLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[limits.models.NAME]"""

    cost: Positive = 1.0
    """What a row of this model costs, or the factor on its time."""
    rate: NotNegative | None = None
    """Cost a second, from everybody together, instead of limits.model_rate."""
    burst: AtLeastOne | None = None
    """Cost at once, from everybody together."""
    account_rate: NotNegative | None = None
    """Cost a second, from one account, instead of limits.account_model_rate."""
    account_burst: AtLeastOne | None = None
    """Cost at once, from one account."""


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[limits]"""

    rate: Positive = 100.0
    """Requests a second that one principal may send, on average."""
    burst: Count = 200
    """Requests that one principal may send at once."""
    key_rate: NotNegative = 0.0
    """Requests a second with one API key or session, on average; 0 = any number."""
    key_burst: Count = 200
    """Requests at once with one API key or session."""
    address_rate: NotNegative = 1000.0
    """Requests and connections a second from one address, counted before any credential is looked at; 0 = any number."""
    address_burst: Count = 2000
    """Requests and connections at once from one address."""
    cost: Literal["rows", "time"] = "rows"
    """What a request costs: its rows, or the milliseconds that they take the model."""
    cost_rate: NotNegative = 1000.0
    """Cost a second that one principal may ask for, over all models; 0 = any."""
    cost_burst: Count = 8192
    """Cost that one principal may ask for at once: no batch may be larger."""
    model_rate: NotNegative = 0.0
    """Cost a second that everybody together may ask of one model; 0 = any."""
    model_burst: Count = 8192
    """Cost that everybody together may ask of one model at once."""
    account_model_rate: NotNegative = 0.0
    """Cost a second that one principal may ask of one model; 0 = any."""
    account_model_burst: Count = 8192
    """Cost that one principal may ask of one model at once."""
    in_flight: Whole = 64
    """Requests of one principal that one process handles at the same time; 0 = any number."""
    in_flight_total: Whole = 512
    """Requests that one process handles at the same time; 0 = any number."""
    failures_rate: Positive = 1.0
    """Bad credentials a second that one address may present, on average."""
    failures_burst: Count = 20
    """Bad credentials that one address may present at once."""
    key_requests: Count = 1000
    """Default quota of an API key or a session, rows in all."""
    session_requests: Whole = 0
    """Largest quota of a session, rows in all, whatever its client asks for; 0 = ``key_requests``: it may only ask for less."""
    session_seconds: Annotated[int, Meta(ge=60, le=86_400)] = 3600
    """Lifetime of a session token, seconds."""
    key_days: Annotated[int, Meta(ge=1, le=3650)] = 90
    """Default lifetime of an API key, days."""
    accounts: dict[str, OwnLimits] = {}
    """Other limits of single accounts, by name."""
    keys: dict[str, OwnLimits] = {}
    """Other limits of single API keys, by id."""
    models: dict[str, ModelLimits] = {}
    """Other limits of single models, by name."""


class AccessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[access]"""

    url: Annotated[str, Meta(pattern=r"^(https://[A-Za-z0-9.-]+(:[0-9]{1,5})?)?$")] = ""
    """Address of control as its users see it, such as "https://keep.acme.eu": what tokens say issued them, and the address that
    passkeys are of; empty = tokens say the origin of the keep, and passkeys are of where control listens."""
    token_seconds: Annotated[int, Meta(ge=60, le=86_400)] = 600
    """Lifetime of an access token that the token endpoint gives, seconds."""
    refresh_seconds: Annotated[int, Meta(ge=60, le=31_536_000)] = 604_800
    """How long after a login its refresh tokens work at most, seconds."""
    refresh_idle_seconds: Annotated[int, Meta(ge=60, le=31_536_000)] = 86_400
    """How long a refresh token works when it is not used, seconds."""
    mfa_roles: tuple[str, ...] = ()
    """Roles whose accounts must use a second factor."""
    step_up_requests: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    """Rows after which a second factor is asked for again; 0 = never."""
    step_up_rung: Literal["off", "coarse", "quantised"] = "off"
    """Rung of the extraction ladder from which a recent second factor is asked for."""
    step_up_seconds: Annotated[int, Meta(ge=60, le=86_400)] = 900
    """How old that second factor may be, seconds."""
    step_up_keys: Literal["approve", "exempt"] = "approve"
    """API keys have no second factor: whether their account must be approved instead, or they are never asked."""


class ExtractionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[extraction]"""

    alpha: Annotated[float, Meta(ge=1e-9, le=0.1)] = 1e-3
    """Greatest chance that an honest account is ever accused."""
    epsilon: Annotated[float, Meta(ge=0.0, le=0.2)] = 0.05
    """Greatest L1 distance that the account mark moves a vector of probabilities."""
    regression_epsilon: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0
    """Greatest change of an answer of one number by the account mark, as a share of the model's own error; 0 marks none."""
    on_alarm: Literal["refuse", "label-only"] = "refuse"
    """What an accused account gets until it is reviewed, while the ladder that ships is in force."""
    contact: Annotated[str, Meta(max_length=200, pattern=r"\A[ -~]*\Z")] = ""
    """Whom an account may ask about a review or its budget, such as a mail address or a page; it is told with answers."""
    accounts_in_memory: Count = 32_768
    """Accounts of one release whose evidence stays in memory; the coldest go to a nameless, encrypted file in the keep."""
    clusters: tuple[Literal["network", "signup"], ...] = ("network", "signup")
    """What accounts must share to be judged as one, too."""
    mark_epoch_days: Annotated[float, Meta(ge=0.0, le=3650.0)] = 0.0
    """How long one key marks an account's answers before the next one does; 0: until a trace report opens it."""


class AuditSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[audit]"""

    hang_seconds: Positive = 1.0
    """A record not durable after this long makes the gateway refuse answers."""
    queue: Count = 4096
    """Records that may wait for the disk; one more is refused."""
    period_hours: Annotated[float, Meta(ge=0)] = 24.0
    """How long one audit log lasts; then it is closed and signed, and the next goes on. 0 = as long as its process."""
    handover_seconds: Positive = 60.0
    """Pause between two handovers of a gateway's audit checkpoint to control."""
    reserve: Count = 1 << 20
    """Bytes of disk kept back for the end of an audit log; when no more are free, nothing is answered."""
    sinks: tuple[str, ...] = ()
    """Where audit records go besides the journal: disk:/PATH, syslog+tls://HOST:PORT, https://HOST/PATH."""
    require: Annotated[int, Meta(ge=0, le=16)] = 0
    """How many of the sinks must accept a record before it counts; 0 = they follow when they can."""
    break_glass: str = ""
    """Answer without required sinks for a while, as "until 2026-12-01T00:00Z: why"; at most 24 hours, and logged."""


class DpopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[dpop]"""

    window_seconds: Annotated[int, Meta(ge=5, le=600)] = 60
    """How long a proof of possession is good for, seconds from when it was made."""
    nonce_seconds: Annotated[int, Meta(ge=0, le=3600)] = 300
    """How old our nonce in a proof may be, seconds; 0 = none is asked for."""


class IssuerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[issuers]], one for each"""

    alias: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    """Short name; accounts are called <name>@<alias>. Never change it: it is part of who somebody is."""
    issuer: Annotated[str, Meta(pattern=r"^https?://[^\s?#]+$", max_length=512)]
    """The issuer's identifier, letter for letter as in the claim "iss"."""
    audiences: Annotated[tuple[str, ...], Meta(min_length=1)]
    """What this keep is called at the issuer; one of these must be in the claim "aud"."""
    roles: dict[str, str]
    """Which value of the roles claim gives which role."""
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1)] = ("ES256", "EdDSA", "PS256", "RS256")
    """Algorithms allowed, the preferred one first for keys that do not name theirs."""
    types: Annotated[tuple[str, ...], Meta(min_length=1)] = ("at+jwt",)
    """Values of the header "typ" that count as access tokens."""
    jwks_uri: str = ""
    """Where the issuer's keys are; empty = where its discovery document says."""
    ca: str = ""
    """PEM file in the keep's folder: the authorities of the issuer's certificate; empty = those that the machine trusts."""
    allow_http: bool = False
    """Allow http to the machine itself, for tests."""
    account_claim: str = "sub"
    """Claim that an account is named by."""
    roles_claim: str = "roles"
    """Claim that holds the roles: a list, or words in one text; dots lead into objects."""
    tenant_claim: str = ""
    """Claim that names a tenant."""
    tenants: tuple[str, ...] = ()
    """Values of the tenant claim that are let in; empty = it is not looked at."""
    binding: Literal["", "dpop", "certificate", "any"] = ""
    """What a token must be bound to; empty = it may be a bearer token."""
    clock_skew: Annotated[int, Meta(ge=0, le=300)] = 30
    """Seconds that "iat" and "nbf" may be ahead of this machine."""
    max_lifetime: Annotated[int, Meta(ge=1, le=604_800)] = 86_400
    """Longest time from "iat" to "exp", seconds."""
    refresh_seconds: Positive = 300.0
    """Pause between two reads of the issuer's keys."""
    retry_seconds: Annotated[float, Meta(ge=1.0)] = 10.0
    """Least pause between two reads, when a token names a key that is not known or the last read failed."""
    stale_seconds: Positive = 3600.0
    """How long its keys count after they were last read."""
    token_requests: Annotated[int, Meta(ge=0)] = 0
    """Requests that one token is good for; 0 = as many as the limits let."""
    max_accounts: Count = 10_000
    """How many accounts of this issuer may come."""

    def __post_init__(self) -> None:
        if self.alias == "local":
            raise ValueError("no issuer may be called local")
        if unknown := sorted(set(self.algorithms) - set(ALGORITHMS)):
            raise ValueError(f"{unknown[0]!r} is no algorithm for tokens: use some of {', '.join(ALGORITHMS)}")
        if bool(self.tenants) != bool(self.tenant_claim):
            raise ValueError("tenants and tenant_claim go together")
        for role in self.roles.values():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", role):
                raise ValueError(f"{role!r} is not the name of a role")


class KeySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[keys]"""

    model_kek: str = ""
    """Where model keys must be made, as a provider URI; empty = wherever the key ring says ('modelkeep keys move')."""
    statement_signing: str = ""
    """Where the next statement identity has its Ed25519 half, as the pkcs11: URI of a token; empty = in the key ring."""
    ttl: Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,4}[smhd])?$")] = ""
    """Control rotates a wrapping key when its primary is this old, such as "30d"; empty = never by itself."""
    destroy_grace_days: Annotated[int, Meta(ge=1, le=365)] = 7
    """How long a disabled key waits for its destruction, days."""
    check_seconds: Positive = 60.0
    """Pause between two looks of control at what is due with the keys."""

    @property
    def ttl_ns(self) -> int:
        """``ttl`` in nanoseconds; 0 = never."""
        if not self.ttl:
            return 0
        return int(self.ttl[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[self.ttl[-1]] * 10**9


class ScanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[scan]"""

    opinions: Literal["auto", "off", "require"] = "auto"
    """Whether other scanners that are installed are asked, or must be."""
    python: Annotated[str, Meta(pattern=r"^(/.+)?$")] = ""
    """Absolute path of the Python interpreter that they are installed in; empty = the one that modelkeep runs in."""
    opinion_seconds: Positive = 120.0
    """How long one of them may take for one file."""
    opinion_memory: Annotated[int, Meta(ge=256 << 20)] = 4 << 30
    """Memory that one of them may use, beside three times the file's size, bytes."""


class BlobSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[blobs]"""

    url: str = ""
    """Where the sealed bodies are, such as "s3://bucket/prefix"; empty = in the keep's folder."""


class RecordSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[records]"""

    url: str = ""
    """Where the records are, such as "postgresql://user@host/database"; empty = in the keep's folder (SQLite)."""

    def __repr__(self) -> str:
        return "RecordSettings(url=…)"  # it may hold a password


class StateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[state]"""

    url: str = ""
    """Where limits are counted that several gateways share, such as "rediss://user@host"; empty = in each gateway by itself."""

    def __repr__(self) -> str:
        return "StateSettings(url=…)"  # it may hold a password


class WitnessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[witness]"""

    policy: str = ""
    """File in the keep's folder that says which witnesses must have cosigned the releases log; empty = none need to."""
    ca: str = ""
    """File in the keep's folder with the authorities of witnesses' certificates, PEM; empty = the public ones."""
    seconds: Positive = 2.0
    """Pause between two rounds in which control asks witnesses that have not cosigned the newest checkpoint."""


class ProvenanceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[provenance]"""

    allowed_signers: str = ""
    """File of ssh allowed signers whose signatures on commits of training code count; empty = nobody's do."""
    gnupg_home: str = ""
    """GnuPG home with the public keys whose signatures on commits count; empty = nobody's do."""
    require_signed_code: bool = False
    """A training run is recorded only when its code is one commit with a good signature, and nothing beside it."""
    require_isolated: bool = False
    """A training run is recorded only when it ran isolated, without network."""


class IntelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[intel]"""

    max_age_days: Annotated[int, Meta(ge=1, le=3650)] = 14
    """Dependencies count as audited only by an advisory snapshot whose newest record is at most this old, days."""
    check_seconds: Positive = 60.0
    """Pause between two looks of control whether releases must be checked against a new advisory snapshot."""


class ConvertSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[convert]"""

    python: Annotated[str, Meta(pattern=r"^(/.+)?$")] = ""
    """Absolute path of the Python interpreter that has scikit-learn and skl2onnx; empty = the one that modelkeep runs in."""
    seconds: Positive = 120.0
    """How long one conversion may take."""
    memory: Annotated[int, Meta(ge=256 << 20)] = 4 << 30
    """Memory that it may use, beside three times the file's size, bytes."""
    max_model: Count = 512 << 20
    """Largest model that may come out of it, bytes."""


class UpstreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[upstream]"""

    origins: tuple[str, ...] = ()
    """Servers that releases may point at, such as https://models.acme.eu:8443; empty = any, and then none is sent a token."""
    link_local: bool = False
    """Whether an upstream may have a link-local address, where clouds keep the secrets of machines."""
    connect_seconds: Positive = 2.0
    """How long a connection to an upstream may take to make, TLS included."""
    answer_seconds: Annotated[float, Meta(gt=0, le=14)] = 10.0
    """How long one question may take there, waiting for its turn included."""
    max_answer: Count = 16 << 20
    """Largest answer of an upstream, bytes."""
    requests: Count = 16
    """Questions that one model's upstream is asked at once."""
    queue: Count = 64
    """Questions that may wait for their turn at one model's upstream; one more is refused."""
    breaker_window: Count = 20
    """Answers of an upstream that its circuit breaker looks back at."""
    breaker_failures: Count = 5
    """It opens when at least so many of them failed..."""
    breaker_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """...and at least this share of them."""
    breaker_seconds: Positive = 2.0
    """How long it stays open before one question is let through to see."""


class ValidationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[validation]"""

    ranges: Literal["refuse", "record", "off"] = "record"
    """What becomes of an input outside of what the model's reference data cover."""
    tolerance: Annotated[float, Meta(ge=0.0)] = 1.0
    """How far outside its range a value may lie, as a share of that value's usual width."""
    tell: Literal["nothing", "feature", "bounds"] = "feature"
    """What a refusal names: nothing, the feature, or its bounds too."""


class ExplainSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[explain]"""

    samples: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Pairs of permutations that an explanation samples, unless the request names fewer or more."""
    max_rows: Annotated[int, Meta(ge=64, le=1 << 22)] = 65_536
    """Most rows that one explanation may ask the model; samples are cut to that."""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log]"""

    format: Literal["auto", "text", "json"] = "auto"
    """How servers write their log to standard error; auto is text on a terminal and JSON elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written."""
    repeat_seconds: Annotated[float, Meta(ge=0)] = 10.0
    """A line that comes again within this is counted instead; 0 = every line is written."""
    access: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of requests that the gateway writes a line about; those that failed for us always are, unless it is 0."""
    addresses: Literal["off", "truncated", "full"] = "off"
    """What such a line says of the client's address: nothing, its network, or all."""


class TraceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[trace]"""

    endpoint: Annotated[str, Meta(pattern=r"^(https?://[^\s]+)?$")] = ""
    """Where the gateway sends its traces (OTLP over HTTP), such as "http://127.0.0.1:4318/v1/traces"; empty = nowhere."""
    share: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Share of requests that are traced."""


class UnsealSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[unseal]"""

    provider: str = ""
    """URI of the key that unseals this keep at start ('modelkeep unsealing provider'); empty = a person does."""
    retry_seconds: Positive = 5.0
    """Pause between two tries of a sealed process to be unsealed by the provider."""
    share_seconds: Positive = 600.0
    """Shares given are forgotten when the next one takes longer than this."""
