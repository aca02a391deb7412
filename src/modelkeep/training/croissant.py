"""Metadata of a data set as Croissant 1.0: JSON-LD over schema.org's Dataset.

Source: MLCommons, "Croissant Format Specification", version 1.0: the required properties of "Dataset-level Information", and
FileObject, FileSet, RecordSet. Tables get their columns as fields; the arrays of an npz file have no words in it.
"""

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

CONFORMS = "http://mlcommons.org/croissant/1.0"
_MEDIA = {
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "parquet": "application/x-parquet",
    "npz": "application/x-npz",
    "images": "application/x-tar",
}
_TYPES = {"text": "sc:Text", "string": "sc:Text", "bool": "sc:Boolean", "double": "sc:Float", "float": "sc:Float"}
_URL = re.compile(r"https?://\S+\Z")
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}\Z")
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


class Described(Struct, frozen=True):
    """What is told. ``name``: of the data set; ``kind`` and ``columns`` as it was added; ``sha256``: hex, of the very bytes;
    ``published``: a date, ISO 8601; ``parents``: what it was made of; ``url``: where it is spoken of when ``source`` is none.
    """

    name: str
    version: int
    kind: str
    filename: str
    size: int
    sha256: str
    columns: Mapping[str, str]
    creator: str
    published: str
    url: str
    licence: str = ""
    source: str = ""
    description: str = ""
    personal: bool = False
    parents: tuple[str, ...] = ()


def croissant(said: Described) -> dict[str, Any]:
    """The JSON-LD document."""
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": said.name,
        "description": said.description or f"The data set {said.name}, version {said.version}.",
        "license": _licence(said.licence),
        "url": said.source if _URL.match(said.source) else said.url,
        "creator": {"@type": "sc:Person", "name": said.creator},
        "datePublished": said.published,
        "version": f"{said.version}.0.0",
        "distribution": _distribution(said),
    }
    if said.parents:
        document["isBasedOn"] = list(said.parents)
    if said.personal:
        document["rai:personalSensitiveInformation"] = "The data set was added as personal data."
    if records := _records(said):
        document["recordSet"] = records
    return document


def _distribution(said: Described) -> list[dict[str, Any]]:
    tabs = said.kind == "csv" and said.filename.lower().endswith(".tsv")
    file = {
        "@type": "cr:FileObject",
        "@id": said.filename,
        "name": said.filename,
        "contentUrl": said.filename,
        "contentSize": f"{said.size} B",
        "encodingFormat": _MEDIA["tsv" if tabs else said.kind],
        "sha256": said.sha256,
    }
    if said.kind != "images":
        return [file]
    pictures = {
        "@type": "cr:FileSet",
        "@id": "pictures",
        "name": "pictures",
        "containedIn": {"@id": said.filename},
        "encodingFormat": "image/*",
        "includes": "*/*",
    }
    return [file, pictures]


def _records(said: Described) -> list[dict[str, Any]]:
    if said.kind == "images":
        content = {"fileSet": {"@id": "pictures"}, "extract": {"fileProperty": "content"}}
        folder = {"fileSet": {"@id": "pictures"}, "extract": {"fileProperty": "fullpath"}, "transform": {"regex": "^([^/]+)/"}}
        fields = [_field("x", "sc:ImageObject", content), _field("y", "sc:Text", folder)]
    elif said.kind in ("csv", "parquet"):
        fields = [
            _field(name, _type(kind), {"fileObject": {"@id": said.filename}, "extract": {"column": name}})
            for name, kind in said.columns.items()
        ]
    else:
        return []
    return [{"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": fields}]


def _field(name: str, kind: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"rows/{name}", "name": name, "dataType": kind, "source": source}


def _type(kind: str) -> str:
    """The type of a column, by its kind or Arrow type."""
    if kind.startswith(("int", "uint")):
        return "sc:Integer"
    if kind.startswith(("float", "double", "decimal", "half")):
        return "sc:Float"
    if kind.startswith("timestamp"):
        return "sc:DateTime"
    if kind.startswith("date"):
        return "sc:Date"
    return _TYPES.get(kind, "sc:Text")


def _licence(licence: str) -> Any:
    """A URL where one is known: of SPDX for what looks like one of its names."""
    if _URL.match(licence):
        return licence
    if _SPDX.match(licence):
        return f"https://spdx.org/licenses/{licence}.html"
    return {"@type": "sc:CreativeWork", "name": licence or "none stated"}
