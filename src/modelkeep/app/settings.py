"""Settings: one TOML file, then the environment, read once.

Every setting is a field of a section (``app/sections``) with its default and its meaning; docs/settings.md lists them and a
test holds the two together.
The environment overrides the file: ``MODELKEEP_GATEWAY_PORT=9443`` sets ``port`` in ``[gateway]``.
"""

import os
import re
import tomllib
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from modelkeep.app.sections import (
    AccessSettings,
    AuditSettings,
    BlobSettings,
    ControlSettings,
    ConvertSettings,
    DpopSettings,
    ExplainSettings,
    ExtractionSettings,
    GatewaySettings,
    IntelSettings,
    IssuerSettings,
    KeepSettings,
    KeySettings,
    LimitSettings,
    LogSettings,
    ProvenanceSettings,
    RecordSettings,
    ScanSettings,
    StateSettings,
    TraceSettings,
    UnsealSettings,
    UpstreamSettings,
    ValidationSettings,
    WitnessSettings,
)
from modelkeep.errors import Invalid, Missing, Unavailable

FILE_NAME = "modelkeep.toml"
PREFIX = "MODELKEEP_"
FLAGS = "MODELKEEP_SET"
"""Names of the settings that ``--set`` set, for whoever this process starts."""
LISTS = (("gateway", "names"), ("audit", "sinks"), ("upstream", "origins"), ("access", "mfa_roles"), ("extraction", "clusters"))
"""Settings whose environment variable is a list, separated by commas."""
TABLES = ("issuers",)
"""Arrays of tables, ``[[issuers]]``: the file alone sets them."""
INLINE = (("limits", "accounts"), ("limits", "keys"), ("limits", "models"))
"""Settings whose environment variable is an inline table of TOML."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """modelkeep.toml, whole."""

    keep: KeepSettings = KeepSettings()
    gateway: GatewaySettings = GatewaySettings()
    control: ControlSettings = ControlSettings()
    limits: LimitSettings = LimitSettings()
    dpop: DpopSettings = DpopSettings()
    access: AccessSettings = AccessSettings()
    extraction: ExtractionSettings = ExtractionSettings()
    audit: AuditSettings = AuditSettings()
    blobs: BlobSettings = BlobSettings()
    records: RecordSettings = RecordSettings()
    state: StateSettings = StateSettings()
    keys: KeySettings = KeySettings()
    witness: WitnessSettings = WitnessSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()
    intel: IntelSettings = IntelSettings()
    scan: ScanSettings = ScanSettings()
    unseal: UnsealSettings = UnsealSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    convert: ConvertSettings = ConvertSettings()
    validation: ValidationSettings = ValidationSettings()
    explain: ExplainSettings = ExplainSettings()
    issuers: tuple[IssuerSettings, ...] = ()

    def __post_init__(self) -> None:
        for field in ("alias", "issuer"):
            found = [getattr(issuer, field) for issuer in self.issuers]
            if len(set(found)) < len(found):
                raise ValueError(f"two issuers have the same {field}")


def load(directory: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings of the keep in ``directory``. Raises Missing (no keep there), Invalid, Unavailable."""
    path = directory / FILE_NAME
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise Missing(f"there is no keep in {directory}: make one with 'modelkeep init {directory}'") from None
    except UnicodeDecodeError as cause:
        raise Invalid(f"{path} is not UTF-8 text: {cause}") from cause
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as cause:
        raise Invalid(f"{path} is not TOML: {cause}") from cause
    return parse(table, environment, str(path))


def parse(table: dict[str, Any], environment: Mapping[str, str], where: str) -> Settings:
    """Settings from a parsed TOML table, overridden by the environment. Raises Invalid, naming the setting."""
    merged = {section: dict(body) if isinstance(body, dict) else body for section, body in table.items()}
    for section, field in all_settings():
        value = environment.get(variable(section, field))
        if value is not None and isinstance(merged.setdefault(section, {}), dict):
            merged[section][field] = from_text(section, field, value)
    try:
        return msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as cause:
        raise Invalid(_first_wrong(str(cause), environment, where)) from cause


def _first_wrong(said: str, environment: Mapping[str, str], where: str) -> str:
    """What msgspec ``said``, as one line: where it was set, which setting, what is wrong, and how to hear of all that is."""
    wrong, _, at = said.partition(" - at `$")
    name = at.strip("`.")
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", wrong):
        wrong = f"there is no such {'setting' if name else 'section'}"
        name = f"{name}.{unknown[1]}".lstrip(".")
    named = variable(*name.split(".", 1)) if "." in name else ""
    if named in environment:
        where = "--set" if name in environment.get(FLAGS, "").split() else named
    of = f"{name}: " if name else ""
    return f"{where}: {of}{plainly(wrong, name)}; 'modelkeep config check' says everything that is wrong"


def plainly(wrong: str, name: str) -> str:
    """What msgspec found ``wrong`` with the setting ``name``, with the words that it may have."""
    section, _, field = name.partition(".")
    kinds = {(one, found.name): found.type for one, fields in _sections().items() for found in fields}
    kind = kinds.get((section, field))
    if wrong.startswith("Invalid enum value") and typing.get_origin(kind) is typing.Literal:
        *words, last = map(str, typing.get_args(kind))
        return f"expected {', '.join(words)} or {last}, got {wrong.removeprefix('Invalid enum value ')}"
    return wrong.replace("`", "")


@cache
def _sections() -> dict[str, tuple[msgspec.structs.FieldInfo, ...]]:
    """The fields of every section that is one table."""
    sections = [section for section in msgspec.structs.fields(Settings) if section.name not in TABLES]
    return {section.name: msgspec.structs.fields(section.type) for section in sections}


def from_text(section: str, field: str, value: str) -> Any:
    """What the variable of a setting says, as the file would have it. Raises Invalid."""
    if any("\ud800" <= c <= "\udfff" for c in value):  # how Python shows bytes that are no UTF-8
        raise Invalid(f"{variable(section, field)} is not UTF-8 text")
    listed = (section, field) in LISTS
    if listed and not value.lstrip().startswith("["):
        return value.split(",") if value else []
    if not listed and (section, field) not in INLINE:
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as cause:
        kind = "array" if listed else "inline table"
        raise Invalid(f"{variable(section, field)} is no {kind} of TOML: {cause}") from cause


def all_settings() -> list[tuple[str, str]]:
    """Every (section, field), in the order of the file."""
    return [(section, field.name) for section, fields in _sections().items() for field in fields]


def authority_files(settings: Settings) -> list[str]:
    """Files in the keep's folder that say whose certificates count for identity."""
    return [name for name in (settings.gateway.client_ca, *(issuer.ca for issuer in settings.issuers)) if name]


def variable(section: str, field: str) -> str:
    """The environment variable that overrides a setting."""
    return f"{PREFIX}{section}_{field}".upper()


def template(origin: str, blobs: str = "", records: str = "") -> str:
    """The modelkeep.toml that init writes: only what cannot be a default. ``blobs``, ``records``: URLs, "" = in the folder."""
    stores = [(section, url) for section, url in (("blobs", blobs), ("records", records)) if url]
    return (
        "# Settings of this keep; docs/settings.md lists all of them with their defaults.\n"
        f'[keep]\norigin = "{origin}"  # names the logs of this keep; never change it\nadmission = "standard"\n'
        + "".join(f"\n[{section}]\nurl = {msgspec.json.encode(url).decode()}\n" for section, url in stores)
    )
