"""The upstream document: its bytes, what it may say, and that it has one form only."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.values import TensorSpec
from modelkeep.custody.scan import scan
from modelkeep.errors import Invalid
from modelkeep.formats.detect import Format, detect
from modelkeep.formats.upstream import Upstream, parse_upstream

ENDS = {"inputs": (TensorSpec("x", "FP32", (-1, 4)),), "outputs": (TensorSpec("p", "FP32", (-1, 3)),)}
PIN = "ab" * 32
DOCUMENT = (
    b'{"_type":"urn:x-modelkeep:upstream:v1","authority":"","binary":true,'
    b'"inputs":[{"datatype":"FP32","name":"x","shape":[-1,4]}],"model":"iris",'
    b'"outputs":[{"datatype":"FP32","name":"p","shape":[-1,3]}],"pins":["' + PIN.encode() + b'"],"platform":"onnx",'
    b'"token":"env:MODELKEEP_UPSTREAM_TOKEN_IRIS","url":"https://models.acme.eu","version":"3"}'
)


def upstream(**more):
    return Upstream(**{"url": "https://models.acme.eu", "model": "iris", **ENDS, **more})


def test_its_bytes():
    made = upstream(version="3", platform="onnx", binary=True, pins=(PIN,), token="env:MODELKEEP_UPSTREAM_TOKEN_IRIS")
    assert made.encode() == DOCUMENT
    assert parse_upstream(DOCUMENT) == made
    assert detect(DOCUMENT) is Format.UPSTREAM
    verdict = scan(DOCUMENT, "upstream.json")
    assert verdict.clean and verdict.format == "upstream" and verdict.signature == made.signature


BAD = {
    "model": {"model": "../admin"},
    "model-slash": {"model": "a/b"},
    "model-empty": {"model": ""},
    "version": {"version": "1?x"},
    "platform": {"platform": "a\nb"},
    "pin": {"pins": ("AB" * 32,)},
    "pin-plain": {"url": "http://a", "pins": (PIN,)},
    "authority-plain": {"url": "http://a", "authority": "x"},
    "token-plain": {"url": "http://a", "token": "file:a"},
    "token-elsewhere": {"token": "env:AWS_SECRET_ACCESS_KEY"},
    "token-path": {"token": "file:../token"},
    "token-itself": {"token": "s3cret"},
    "no-inputs": {"inputs": ()},
    "twice": {"outputs": ENDS["outputs"] * 2},
    "shape": {"inputs": (TensorSpec("x", "FP32", (-2,)),)},
    "rank": {"inputs": (TensorSpec("x", "FP32", (1,) * 9),)},
    "name": {"inputs": (TensorSpec("", "FP32", (1,)),)},
    "grpc-path": {"url": "grpc://a:1/x"},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_not_written(name):
    with pytest.raises(Invalid):
        parse_upstream(upstream(**BAD[name]).encode())


def changed(**more):
    return json.dumps({**json.loads(DOCUMENT), **more}, sort_keys=True, separators=(",", ":")).encode()


FORGED = {
    "trailing": DOCUMENT + b" ",
    "spaces": DOCUMENT.replace(b",", b", "),
    "unknown": changed(more=1),
    "another-type": changed(_type="urn:x-modelkeep:upstream:v2"),
    "cut": DOCUMENT[:-1],
    "empty": b"",
    "number": changed(model=3),
    "twice": DOCUMENT.replace(b'"model":"iris",', b'"model":"iris","model":"iris",'),
    "escaped": DOCUMENT.replace(b'"iris"', b'"\\u0069ris"'),
    "float": DOCUMENT.replace(b"[-1,4]", b"[-1,4.0]"),
    "polyglot": DOCUMENT + b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", FORGED)
def test_another_form_of_the_same_is_refused(name):
    with pytest.raises(Invalid):
        parse_upstream(FORGED[name])
    assert not scan(FORGED[name], "upstream.json").clean


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(0, 255))
def test_one_digest_means_one_document(at, byte):
    data = DOCUMENT[:at] + bytes([byte]) + DOCUMENT[at + 1 :]
    try:
        found = parse_upstream(data)
    except Invalid:
        return
    assert found.encode() == data
    assert (found == parse_upstream(DOCUMENT)) == (data == DOCUMENT)
