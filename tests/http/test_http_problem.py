"""Errors as HTTP, and the metrics text."""

import json

import pytest

from modelkeep import errors
from modelkeep.http.inference import failure
from modelkeep.http.metrics import Metrics
from modelkeep.http.problem import STATUS, bad_request, problem, status_of
from modelkeep.http.protocol import BadRequest


def tree(root=errors.ModelkeepError):
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", [k for k in tree() if k.__module__ == "modelkeep.errors"], ids=lambda k: k.code)
def test_every_error_has_a_status_of_its_own_and_one_shape(kind):
    error = kind("why", 2.5) if issubclass(kind, errors.OverBudget) else kind("why")
    answer = problem(error)
    said = json.loads(answer.body)
    assert kind in STATUS and answer.status == said["status"] == status_of(error)
    assert (said["code"], said["detail"], said["error"]) == (kind.code, "why", "why")
    assert answer.content_type == b"application/problem+json" and said["type"] == f"urn:x-modelkeep:error:{kind.code}"


def test_headers_that_tell_a_client_what_to_do():
    assert (b"retry-after", b"3") in problem(errors.OverBudget("slow down", 2.1)).headers
    assert (b"retry-after", b"1") in problem(errors.OverBudget("slow down", 0.01)).headers
    told = problem(errors.OverBudget("slow down", 2.1, "rows", "q=8;w=4"))
    assert told.headers == (
        (b"retry-after", b"3"), (b"ratelimit-policy", b'"rows";q=8;w=4'), (b"ratelimit", b'"rows";r=0;t=3'),
    )  # fmt: skip
    assert (json.loads(told.body)["retry_after"], json.loads(told.body)["violated-policies"]) == (2.1, ["rows"])
    assert "violated-policies" not in json.loads(problem(errors.Denied("no")).body)
    assert problem(errors.Unauthenticated("who")).headers[0][0] == b"www-authenticate"
    assert bad_request(BadRequest(408, "too-slow", "slow")).status == 408


@pytest.mark.parametrize(
    ("fault", "nonce", "challenge"),
    [
        ("", "", b'Bearer realm="modelkeep"'),
        ("invalid_token", "", b'Bearer realm="modelkeep", error="invalid_token"'),  # RFC 6750, section 3.1
        ("invalid_dpop_proof", "", b'DPoP realm="modelkeep", error="invalid_dpop_proof", algs="'),  # RFC 9449, section 7.1
        ("use_dpop_nonce", "abc", b'DPoP realm="modelkeep", error="use_dpop_nonce", algs="'),  # RFC 9449, section 9
    ],
)
def test_challenges(fault, nonce, challenge):
    headers = dict(problem(errors.Unauthenticated("who", fault=fault, nonce=nonce)).headers)
    assert headers[b"www-authenticate"].startswith(challenge)
    assert headers.get(b"dpop-nonce", b"") == nonce.encode()


def test_a_step_up_is_asked_for_as_rfc_9470_says():
    found = dict(problem(errors.StepUpRequired("again", 900, "https://keep.acme.eu/step-up")).headers)
    assert found[b"www-authenticate"] == (
        b'Bearer realm="modelkeep", error="insufficient_user_authentication", '
        b'acr_values="urn:x-modelkeep:acr:mfa", max_age="900"'
    )
    assert found[b"link"] == b'<https://keep.acme.eu/step-up>; rel="authenticate"'


def test_a_puzzle_is_told_and_the_second_factor_that_does_instead():
    """Over gRPC, too."""
    error = errors.WorkRequired("work", bytes(range(32)), 768, 60)
    puzzle = (b"modelkeep-puzzle", b'"%s";hashes=768;seconds=60' % bytes(range(32)).hex().encode())
    assert problem(error).headers == (puzzle,)
    assert failure(error).trailers == ((b"modelkeep-code", b"work-required"), puzzle)
    factor = errors.StepUpRequired("again", 900)
    either = errors.WorkRequired("work", bytes(range(32)), 768, 60, factor)
    assert problem(either).headers == (puzzle, *problem(factor).headers)
    assert failure(factor).trailers[1:] == problem(factor).headers, "RFC 9470 holds there, too"
    assert failure(either).trailers[1:] == problem(either).headers


def test_the_metrics_text():
    """Source: Prometheus text format 0.0.4."""
    metrics = Metrics()
    metrics.requests.add('a"b\\', "ok")
    metrics.requests.add('a"b\\', "ok")
    metrics.latency.observe(0.0004)
    metrics.latency.observe(99.0)
    metrics.gauge("modelkeep_x", "A number.", lambda: 1.5)
    lines = metrics.text().decode().splitlines()
    assert 'modelkeep_requests_total{model="a\\"b\\\\",outcome="ok"} 2' in lines
    assert 'modelkeep_request_seconds_bucket{le="0.00025"} 0' in lines
    assert 'modelkeep_request_seconds_bucket{le="0.0005"} 1' in lines
    assert 'modelkeep_request_seconds_bucket{le="+Inf"} 2' in lines
    assert "modelkeep_request_seconds_count 2" in lines and "modelkeep_x 1.5" in lines
    assert sum(line.startswith("# TYPE") for line in lines) == 4
