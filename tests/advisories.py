"""Advisory snapshots as osv.dev hands them out: records of the OSV schema in a zip."""

import io
import json
import zipfile

MODIFIED = "2026-11-20T10:00:00.123456Z"
WORST = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"


def events(*pairs, type="ECOSYSTEM"):
    return {"type": type, "events": [dict([pair]) for pair in pairs]}


def affected(name, *ranges, versions=(), ecosystem="PyPI", **more):
    about = {"ecosystem": ecosystem, "name": name, "purl": f"pkg:pypi/{name}"}
    return {"package": about, "ranges": list(ranges), "versions": list(versions), **more}


def record(identity, *about, modified=MODIFIED, **more):
    return {"schema_version": "1.7.3", "id": identity, "modified": modified, "published": "2023-01-02T03:04:05Z",
            "summary": "A flaw", "details": "Something is *wrong*.", "affected": list(about),
            "references": [{"type": "WEB", "url": "https://example.org/flaw"}], **more}  # fmt: skip


def archive(*records):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for number, one in enumerate(records):
            file.writestr(
                zipfile.ZipInfo(f"{number}.json"), one if isinstance(one, bytes) else json.dumps(one), zipfile.ZIP_DEFLATED
            )
    return made.getvalue()


def snapshot(modified=MODIFIED):
    """Some of everything: a critical flaw told twice, a mild one, a withdrawn one, one that cannot be judged, a foreign one."""
    below = ("introduced", "0"), ("fixed", "2.2.0")
    commits = {**events(("introduced", "0"), ("fixed", "ab" * 20), type="GIT"), "repo": "https://example.org/torch"}
    return archive(
        record("GHSA-aaaa-bbbb-cccc", affected("torch", events(*below)), aliases=["CVE-2026-1111"], modified=modified,
               severity=[{"type": "CVSS_V3", "score": WORST}], database_specific={"severity": "CRITICAL"}),
        record("PYSEC-2026-7", affected("torch", commits, events(*below), versions=["2.1.0", "2.1.2"]),
               aliases=["CVE-2026-1111"], modified="2024-11-01T00:00:00Z"),
        record("GHSA-dddd-eeee-ffff", affected("Jinja2", events(("introduced", "3.0"), ("last_affected", "3.1.4"))),
               modified="2024-10-01T00:00:00Z", database_specific={"severity": "MODERATE", "cwe_ids": ["CWE-79"]}),
        record("PYSEC-2025-9", affected("numpy", events(("introduced", "0"))), withdrawn="2025-05-05T00:00:00Z",
               modified="2025-05-05T00:00:00Z"),
        record("OSV-2024-1", affected("odd", {**commits}), modified="2024-05-05T00:00:00Z"),
        record("GHSA-node-node-node", affected("left-pad", events(("introduced", "0"), type="SEMVER"), ecosystem="npm"),
               modified="2024-05-05T00:00:00Z"),
    )  # fmt: skip
