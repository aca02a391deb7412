"""Lineage as a graph and as a tree, and Croissant metadata."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.training.croissant import Described, croissant
from modelkeep.training.lineage import Edge, Lineage, Node, reachable, tree

WHOLE = Lineage(
    (
        Node("dataset:loans@1", "dataset", "loans@1  csv"),
        Node("dataset:loans@2", "dataset", "loans@2  csv"),
        Node("dataset:other@1", "dataset", "other@1  csv"),
        Node("run:r", "run", "run r"),
        Node("model:m", "model", "model.onnx"),
        Node("release:risk@1", "release", "risk@1 (promoted)"),
    ),
    (
        Edge("source:web", "dataset:loans@1"),
        Edge("dataset:loans@1", "dataset:loans@2", "clean.py"),
        Edge("dataset:loans@2", "run:r"),
        Edge("dataset:other@1", "run:r", "", False),
        Edge("run:r", "model:m"),
        Edge("model:m", "release:risk@1"),
    ),
)


def test_the_tree_of_a_version():
    part = reachable(WHOLE, "dataset:loans@2")
    assert tree(part, "dataset:loans@2").splitlines() == [
        "loans@2  csv",
        "made of",
        "  loans@1  csv, by clean.py",
        "    web",
        "went into",
        "  run r",
        "    model.onnx",
        "      risk@1 (promoted)",
    ]
    assert "other@1" not in {node.label for node in part.nodes}


def test_what_is_joined_by_its_name_alone_is_told_so():
    assert "  run r (by name alone)" in tree(reachable(WHOLE, "dataset:other@1"), "dataset:other@1")


def test_of_what_nothing_is_known_there_is_the_name():
    assert tree(Lineage((), ()), "dataset:bare@1") == "bare@1"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=15))
def test_every_graph_has_a_tree_that_ends_and_tells_each_node_once_in_full(pairs):
    edges = tuple(Edge(f"dataset:{one}", f"dataset:{other}") for one, other in pairs)
    part = reachable(Lineage((), edges), "dataset:0")
    below, above = {0}, {0}
    for _ in range(8):
        below |= {other for one, other in pairs if one in below}
        above |= {one for one, other in pairs if other in above}
    told = {int(line.split()[0]) for line in tree(part, "dataset:0").splitlines() if line not in ("made of", "went into")}
    assert told == below | above
    assert {edge for edge in edges if {int(edge.before[8:]), int(edge.after[8:])} <= below} <= set(part.edges)


LOANS = Described(
    name="loans",
    version=2,
    kind="csv",
    filename="loans.csv",
    size=10,
    sha256="ab" * 32,
    columns={"id": "int64", "who": "text", "income": "float64", "defaulted": "bool"},
    creator="ada",
    published="2026-11-26T00:00:00+00:00",
    url="urn:x-modelkeep:data:keep.example:loans@2",
    licence="CC-BY-4.0",
    parents=("loans@1",),
)
REQUIRED = {
    *("@context", "@type", "conformsTo", "name", "description"),
    *("license", "url", "creator", "datePublished", "distribution"),
}


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "images"])
def test_croissant_has_what_the_specification_requires(kind):
    """Version 1.0, "Dataset-level Information", required; checked once with the validator of mlcroissant 1.1.1, too."""
    found = json.loads(json.dumps(croissant(msgspec.structs.replace(LOANS, kind=kind))))
    assert found.keys() >= REQUIRED
    assert (found["@type"], found["conformsTo"]) == ("sc:Dataset", "http://mlcommons.org/croissant/1.0")
    assert (found["name"], found["version"], found["isBasedOn"]) == ("loans", "2.0.0", ["loans@1"])
    assert found["license"] == "https://spdx.org/licenses/CC-BY-4.0.html"
    file = found["distribution"][0]
    assert file["@type"] == "cr:FileObject"
    assert {"@id", "name", "contentUrl", "contentSize", "encodingFormat"} <= file.keys()
    assert file["sha256"] == "ab" * 32
    names = {file["@id"] for file in found["distribution"]}
    for record in found.get("recordSet", ()):
        for field in record["field"]:
            source = field["source"].get("fileObject") or field["source"]["fileSet"]
            assert source["@id"] in names
    assert ("recordSet" in found) == (kind != "npz")


def test_croissant_types_of_columns_and_licences_without_a_url():
    (record,) = croissant(LOANS)["recordSet"]
    assert [(field["name"], field["dataType"]) for field in record["field"]] == [
        ("id", "sc:Integer"),
        ("who", "sc:Text"),
        ("income", "sc:Float"),
        ("defaulted", "sc:Boolean"),
    ]
    said = msgspec.structs.replace(LOANS, licence="see the contract", source="https://example.org/loans", personal=True)
    found = croissant(said)
    assert found["license"] == {"@type": "sc:CreativeWork", "name": "see the contract"}
    assert found["url"] == "https://example.org/loans"
    assert "personal" in found["rai:personalSensitiveInformation"]
