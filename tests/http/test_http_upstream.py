"""Whoever asks a model of an upstream and goes away, or waits too long, takes the question there along."""

import socket

import numpy as np
import pytest
from http_support import Running

from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.dialling import Callee
from modelkeep.adapters.runtime.upstream import HttpLink
from modelkeep.core.values import TensorSpec
from modelkeep.formats.upstream import Upstream, parse_url
from modelkeep.http.protocol import Response
from modelkeep.workflows.upstream import RemoteModel

ENDS = {"inputs": (TensorSpec("x", "FP32", (-1, 2)),), "outputs": (TensorSpec("p", "FP32", (-1, 2)),)}
ASK = b"GET /ask HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
def silent():
    """An upstream that takes questions and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def asking(silent, **listen):
    """A server whose handler asks it; and what became of that, as the handler saw it."""
    url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    connect = lambda: HttpLink(Callee(parse_url(url)))  # noqa: E731
    model, ends = RemoteModel(Upstream(url=url, model="m", **ENDS), connect, SystemClock(), SystemEntropy()), []

    async def handler(_request):
        try:
            await model.infer({"x": np.zeros((1, 2), np.float32)})
        except BaseException as cause:
            ends.append(type(cause).__name__)
            raise
        return Response(200)

    return Running(handler, **listen), ends


def question_of(silent):
    connection, _ = silent.accept()
    connection.settimeout(60)
    assert connection.recv(1 << 16).startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    return connection


def hangs_up(connection):
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    connection.close()


def test_a_client_that_goes_away(silent):
    running, ends = asking(silent)
    try:
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(ASK)
            upstream = question_of(silent)
        hangs_up(upstream)
    finally:
        running.stop()
    assert ends == ["CancelledError"] and running.errors == []


def test_a_request_past_its_deadline(silent):
    running, ends = asking(silent, handle_seconds=0.1)
    try:
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.settimeout(60)
            client.sendall(ASK)
            hangs_up(question_of(silent))
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 503")
    finally:
        running.stop()
    assert ends == ["CancelledError"] and running.errors == []
