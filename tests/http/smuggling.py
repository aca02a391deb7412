"""Byte streams in which two HTTP parsers could see different requests, and what the one right reading of each is.

Every stream names the section of RFC 9112 (or of another, where it says so) that speaks of it. A case is sent whole, and then a
probe, ``GET /end``: it is seen only where the connection is still in sync. What must never be seen is in the streams as
``/smuggled``.
"""

from typing import NamedTuple

import h11

END = b"GET /end HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
Seen = tuple[bytes, bytes, bytes]
"""Method, target, body."""


class Case(NamedTuple):
    """``statuses``: of the answers, in order, without the probe's; ``seen``: the requests that reach the application;
    ``closes``: the connection ends, and the probe is not seen; ``eof``: the stream ends here instead of a probe."""

    name: str
    rfc: str
    data: bytes
    statuses: tuple[int, ...]
    seen: tuple[Seen, ...] = ()
    closes: bool = True
    eof: bool = False


def post(fields: bytes, body: bytes = b"", target: bytes = b"/x", version: bytes = b"1.1") -> bytes:
    """A POST with these fields, each ended by CRLF."""
    return b"POST " + target + b" HTTP/" + version + b"\r\nhost: a\r\n" + fields + b"\r\n" + body


def get(fields: bytes = b"", target: bytes = b"/x", version: bytes = b"1.1") -> bytes:
    """A GET with these fields, each ended by CRLF."""
    return b"GET " + target + b" HTTP/" + version + b"\r\nhost: a\r\n" + fields + b"\r\n"


def taken(name: str, rfc: str, data: bytes, *seen: Seen, closes: bool = False) -> Case:
    """A stream whose requests are all answered."""
    return Case(name, rfc, data, (200,) * len(seen), seen, closes)


def refused(name: str, rfc: str, data: bytes, status: int = 400, *before: Seen) -> Case:
    """A stream that is answered once with ``status``, after the requests ``before`` it, and then closed."""
    return Case(name, rfc, data, (*(200,) * len(before), status), before)


CHUNKED = b"transfer-encoding: chunked\r\n"
ONE = b"3\r\nabc\r\n0\r\n\r\n"
X = (b"POST", b"/x", b"abc")
G = (b"GET", b"/x", b"")

BOTH_LENGTHS = [
    refused("CL.TE", "6.3 (3)", post(b"content-length: 6\r\n" + CHUNKED, b"0\r\n\r\nG" + SMUGGLED)),
    refused("TE.CL", "6.3 (3)", post(CHUNKED + b"content-length: 4\r\n", b"5c\r\n" + SMUGGLED)),
    refused("CL.TE, length 0", "6.3 (3)", post(b"content-length: 0\r\n" + CHUNKED, SMUGGLED)),
    refused("TE.CL, chunked body that fits", "6.3 (3)", post(CHUNKED + b"content-length: 13\r\n", ONE)),
    refused("both lengths on a GET", "6.3 (3)", get(b"content-length: 3\r\n" + CHUNKED) + ONE),
]

CODINGS = [
    taken("chunked in capitals", "7 (coding names are case-insensitive)", post(b"Transfer-Encoding: CHUNKED\r\n", ONE), X),
    taken("field name in capitals", "5.1", post(b"TRANSFER-ENCODING: chunked\r\n", ONE), X),
    taken("spaces before the value", "5.1 (OWS)", post(b"transfer-encoding: \t chunked\r\n", ONE), X),
    refused("spaces after the value", "5.1 (OWS, but refused)", post(b"transfer-encoding: chunked \t\r\n", ONE)),
    refused("TE.TE, twice", "6.1", post(CHUNKED + CHUNKED, ONE + SMUGGLED)),
    refused("TE.TE, a second unknown", "6.1", post(CHUNKED + b"transfer-encoding: cow\r\n", ONE + SMUGGLED)),
    refused("TE.TE, identity first", "6.1", post(b"transfer-encoding: identity\r\n" + CHUNKED, ONE + SMUGGLED)),
    refused("chunked is not last", "6.3 (4)", post(b"transfer-encoding: chunked, gzip\r\n", ONE + SMUGGLED)),
    refused("chunked twice in one field", "6.1", post(b"transfer-encoding: chunked, chunked\r\n", ONE)),
    refused("another coding first", "6.1", post(b"transfer-encoding: gzip, chunked\r\n", ONE)),
    refused("identity", "6.1 (gone since RFC 7230)", post(b"transfer-encoding: identity\r\ncontent-length: 3\r\n", b"abc")),
    refused("xchunked", "6.1", post(b"transfer-encoding: xchunked\r\n", ONE)),
    refused("quoted", "6.1", post(b'transfer-encoding: "chunked"\r\n', ONE)),
    refused("a parameter", "7", post(b"transfer-encoding: chunked;q=1\r\n", ONE)),
    refused("empty coding", "6.1", post(b"transfer-encoding:\r\n", ONE)),
    refused("a comma before", "6.1 (RFC 9110, 5.6.1)", post(b"transfer-encoding: ,chunked\r\n", ONE)),
    refused("vertical tab before", "5.5 (RFC 9110)", post(b"transfer-encoding: \x0bchunked\r\n", ONE)),
    refused("form feed after", "5.5 (RFC 9110)", post(b"transfer-encoding: chunked\x0c\r\n", ONE)),
    refused("NUL after", "5.5 (RFC 9110)", post(b"transfer-encoding: chunked\0\r\n", ONE)),
    refused("high byte after", "5.5 (RFC 9110)", post(b"transfer-encoding: chunked\xff\r\n", ONE)),
    refused("folded coding", "5.2", post(b"transfer-encoding:\r\n chunked\r\n", ONE)),
    refused("coding hidden in a fold", "5.2", post(b"x: y\r\n transfer-encoding: chunked\r\n", b"") + get(b"x: y\r\n z\r\n")),
    refused("chunked in HTTP/1.0", "6.1", post(CHUNKED, ONE, version=b"1.0")),
    taken("a field that only looks like it", "5.1", post(b"transfer_encoding: chunked\r\ncontent-length: 3\r\n", b"abc"), X),
    taken("another that looks like it", "5.1", post(b"x-transfer-encoding: chunked\r\ncontent-length: 3\r\n", b"abc"), X),
]

LENGTHS = [
    taken("spaces around a length", "5.1 (OWS)", post(b"content-length: \t 3 \r\n", b"abc"), X),
    taken("leading zeros", "6.2 (1*DIGIT)", post(b"content-length: 0003\r\n", b"abc"), X),
    refused("twice, the same", "6.3 (5)", post(b"content-length: 3\r\ncontent-length: 3\r\n", b"abc")),
    refused("twice, different", "6.3 (5)", post(b"content-length: 3\r\ncontent-length: 0\r\n", b"abc" + SMUGGLED)),
    refused("a list, the same", "6.3 (5)", post(b"content-length: 3, 3\r\n", b"abc")),
    refused("a list, different", "6.3 (5)", post(b"content-length: 3, 0\r\n", b"abc")),
    refused("plus sign", "6.2", post(b"content-length: +3\r\n", b"abc")),
    refused("minus sign", "6.2", post(b"content-length: -3\r\n", b"abc")),
    refused("a space inside", "6.2", post(b"content-length: 3 0\r\n", b"abc")),
    refused("hexadecimal", "6.2", post(b"content-length: 0x3\r\n", b"abc")),
    refused("a fraction", "6.2", post(b"content-length: 3.0\r\n", b"abc")),
    refused("underscores", "6.2", post(b"content-length: 1_0\r\n", b"abcabcabca")),
    refused("other digits", "6.2", post("content-length: ٣\r\n".encode(), b"abc")),
    refused("empty length", "6.2", post(b"content-length: \r\n", b"abc")),
    refused("overflow of 64 bits", "6.2", post(b"content-length: 18446744073709551619\r\n", b"abc")),
    refused("a name with a space before the colon", "5.1", post(b"content-length : 3\r\n", b"abc")),
    refused("a name with a tab before the colon", "5.1", post(b"content-length\t: 3\r\n", b"abc")),
    refused("a name after a space", "5.2", post(b" content-length: 3\r\n", b"abc")),
    refused("a name with a NUL", "5.1", post(b"content\0-length: 3\r\n", b"abc")),
    refused("no colon", "5", post(b"content-length 3\r\n", b"abc")),
    refused("too large", "2.2 (RFC 9110, 15.5.14)", post(b"content-length: 9000000\r\n", b"abc"), 413),
    taken("a body on GET", "RFC 9110, 9.3.1", get(b"content-length: 3\r\n") + b"abc", (b"GET", b"/x", b"abc")),
    taken("a body on DELETE", "RFC 9110, 9.3.5", b"DELETE" + post(b"content-length: 3\r\n", b"abc")[4:], (b"DELETE", *X[1:])),
    taken("no length, no body", "6.3 (7)", post(b""), (b"POST", b"/x", b"")),
]

CHUNKS = [
    taken("one chunk", "7.1", post(CHUNKED, ONE), X),
    taken("three chunks", "7.1", post(CHUNKED, b"1\r\na\r\n01\r\nb\r\n1\r\nc\r\n0\r\n\r\n"), X),
    taken("sizes with leading zeros", "7.1", post(CHUNKED, b"000003\r\nabc\r\n000\r\n\r\n"), X),
    taken("size in capitals", "7.1", post(CHUNKED, b"A\r\n0123456789\r\n0\r\n\r\n"), (b"POST", b"/x", b"0123456789")),
    taken("an extension is ignored", "7.1.1", post(CHUNKED, b"3;a=b\r\nabc\r\n0\r\n\r\n"), X),
    taken("a quoted extension", "7.1.1", post(CHUNKED, b'3;a="b c"\r\nabc\r\n0\r\n\r\n'), X),
    refused("an extension with a line feed", "7.1.1", post(CHUNKED, b"3;a\nb\r\nabc\r\n0\r\n\r\n")),
    refused("an extension with a carriage return", "7.1.1", post(CHUNKED, b"3;a\rb\r\nabc\r\n0\r\n\r\n")),
    refused("an extension that holds a request", "7.1.1", post(CHUNKED, b"3;\n" + SMUGGLED + b"\r\nabc\r\n0\r\n\r\n")),
    refused("TERM.EXT: bare LF ends the size", "7.1", post(CHUNKED, b"3\nabc\r\n0\r\n\r\n")),
    refused("bare LF ends the data", "7.1", post(CHUNKED, b"3\r\nabc\n0\r\n\r\n")),
    refused("bare LF ends the body", "7.1", post(CHUNKED, b"3\r\nabc\r\n0\r\n\n")),
    refused("bare CR ends the size", "7.1", post(CHUNKED, b"3\rabc\r\n0\r\n\r\n")),
    refused("no size", "7.1", post(CHUNKED, b"\r\nabc\r\n0\r\n\r\n")),
    refused("a space before the size", "7.1", post(CHUNKED, b" 3\r\nabc\r\n0\r\n\r\n")),
    refused("a sign", "7.1", post(CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n")),
    refused("a negative size", "7.1", post(CHUNKED, b"-3\r\nabc\r\n0\r\n\r\n")),
    refused("0x", "7.1", post(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n")),
    refused("no hexadecimal", "7.1", post(CHUNKED, b"g\r\nabc\r\n0\r\n\r\n")),
    refused("size overflows 64 bits", "7.1 (must anticipate)", post(CHUNKED, b"10000000000000003\r\nabc\r\n0\r\n\r\n")),
    refused("size too large", "7.1", post(CHUNKED, b"fffffff\r\n" + b"a" * 200_000), 413),
    refused("more data than the size", "7.1", post(CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n")),
    refused("less data than the size", "7.1", post(CHUNKED, b"5\r\nabc\r\n0\r\n\r\n")),
    refused("data without an end of line", "7.1", post(CHUNKED, b"3\r\nabc0\r\n\r\n")),
    refused("trailer fields", "7.1.2", post(CHUNKED, b"3\r\nabc\r\n0\r\nx: y\r\n\r\n")),
    refused("a trailer that frames", "7.1.2", post(CHUNKED, b"3\r\nabc\r\n0\r\ncontent-length: 50\r\n\r\n" + SMUGGLED)),
    refused("a trailer that authorises", "7.1.2", post(CHUNKED, b"3\r\nabc\r\n0\r\nauthorization: Bearer x\r\n\r\n")),
    refused("a request where a trailer would be", "7.1.2", post(CHUNKED, b"3\r\nabc\r\n0\r\n" + SMUGGLED)),
]

LINES = [
    taken("an empty line before", "2.2", b"\r\n" + get(), G),
    refused("two bare LF", "2.2", b"GET /x HTTP/1.1\nhost: a\n\n"),
    refused("a bare LF after the request line", "2.2", b"GET /x HTTP/1.1\nhost: a\r\n\r\n"),
    refused("a bare LF after a field", "2.2", get(b"x: y\n")),
    refused("a bare CR in a field", "2.2", get(b"x: a\rb: c\r\n")),
    refused("a bare CR ends a field", "2.2", get(b"x: a\r\rb: c\r\n")),
    refused("a bare LF ends the head", "2.2", b"GET /x HTTP/1.1\r\nhost: a\r\n\n"),
    refused("a folded field", "5.2", get(b"x: a\r\n b\r\n")),
    refused("a fold by a tab", "5.2", get(b"x: a\r\n\tb\r\n")),
    refused("a fold before the first field", "2.2", b"GET /x HTTP/1.1\r\n host: a\r\nhost: a\r\n\r\n"),
    refused("NUL in a value", "5.5 (RFC 9110)", get(b"x: a\0b\r\n")),
    refused("control character in a value", "5.5 (RFC 9110)", get(b"x: a\x1bb\r\n")),
    refused("an empty name", "5.1", get(b": y\r\n")),
    refused("a name with a parenthesis", "5.1 (RFC 9110, 5.6.2)", get(b"x(y): z\r\n")),
    refused("a name with a byte above 127", "5.1 (RFC 9110, 5.6.2)", get(b"x\xe9: z\r\n")),
    taken("a value with a byte above 127", "5.5 (RFC 9110: obs-text)", get(b"x: \xe9\r\n"), G),
    taken("an underscore in a name", "5.1", get(b"content_length: 99\r\n"), G),
    taken("an empty value", "5.1", get(b"x:\r\n"), G),
    refused("no host", "3.2", b"GET /x HTTP/1.1\r\n\r\n"),
    refused("host twice", "3.2", get(b"host: b\r\n")),
    refused("host twice, in capitals", "3.2", get(b"HOST: a\r\n")),
    refused("authorization twice", "RFC 9110, 5.3", get(b"authorization: a\r\nauthorization: b\r\n")),
    refused("65 fields", "2.2 (RFC 9110, 5.4)", get(b"".join(b"x%d: y\r\n" % n for n in range(65))), 431),
    refused("one name, 500 times", "2.2 (RFC 9110, 5.4)", get(b"x: y\r\n" * 500 + b"z: " + b"y" * 16_000 + b"\r\n"), 431),
    refused("a very long value", "2.2 (RFC 9110, 5.4)", get(b"x: " + b"y" * 17_000 + b"\r\n"), 431),
    refused("a very long target", "3 (414 or 431)", get(target=b"/" + b"y" * 17_000), 431),
]

REQUEST_LINES = [
    taken("a query", "3.2.1", get(target=b"/x?a=/../b"), (b"GET", b"/x?a=/../b", b"")),
    taken("absolute form", "3.2.2", get(target=b"http://a/x"), (b"GET", b"http://a/x", b"")),
    taken("asterisk form", "3.2.4", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", (b"OPTIONS", b"*", b"")),
    refused("authority form", "3.2.3", b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED, 501),
    refused("CONNECT with a length", "3.2.3", b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", 501),
    taken("two spaces before the target", "3 (may be read by words)", b"GET  /x HTTP/1.1\r\nhost: a\r\n\r\n", G),
    taken("two spaces after the target", "3 (may be read by words)", b"GET /x  HTTP/1.1\r\nhost: a\r\n\r\n", G),
    refused("a tab for a space", "3", b"GET\t/x HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("a space at the end", "3", b"GET /x HTTP/1.1 \r\nhost: a\r\n\r\n"),
    refused("a space before", "3", b" GET /x HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("a space in the target", "3.2", b"GET /x y HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("a NUL in the target", "3.2", b"GET /x\0 HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("a control character in the target", "3.2", b"GET /x\x07 HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("a byte above 127 in the target", "3.2 (RFC 3986)", b"GET /x\xe9 HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("a fragment in the target", "3.2 (RFC 9110, 7.1)", get(target=b"/x#y")),
    refused("a method in small letters", "3.1 (case-sensitive)", b"get /x HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("an unknown method", "3.1", b"SMUGGLE /x HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("an empty method", "3.1", b" /x HTTP/1.1\r\nhost: a\r\n\r\n"),
    refused("HTTP/0.9", "2.3 (gone)", b"GET /x\r\n\r\n", 505),
    refused("HTTP/1.2", "2.3", get(version=b"1.2")),
    refused("HTTP/2.0", "2.3", get(version=b"2.0"), 505),
    refused("HTTP/1.1 with zeros", "2.3", get(version=b"01.1")),
    refused("HTTP/11", "2.3", get(version=b"11")),
    refused("http in small letters", "2.3", b"GET /x http/1.1\r\nhost: a\r\n\r\n"),
    refused("no version number", "2.3", b"GET /x HTTP/\r\nhost: a\r\n\r\n"),
    refused("ICE/1.0", "2.3", b"SOURCE /x ICE/1.0\r\nhost: a\r\n\r\n", 501),
    refused("a method of RTSP", "2.3", b"PLAY /x RTSP/1.0\r\nhost: a\r\n\r\n", 501),
    refused("a method of ICE with HTTP", "2.3", b"SOURCE /x HTTP/1.1\r\nhost: a\r\n\r\n", 501),
    taken(
        "RTSP/1.0 with a method of HTTP",
        "2.3 (llhttp reads it as HTTP/1.0)",
        b"GET /x RTSP/1.0\r\nhost: a\r\n\r\n",
        G,
        closes=True,
    ),
    refused("a method of WebDAV", "RFC 9110, 9.1", b"PROPFIND /x HTTP/1.1\r\nhost: a\r\n\r\n", 501),
    taken("TRACE", "RFC 9110, 9.3.8 (the application refuses it)", b"TRACE /x HTTP/1.1\r\nhost: a\r\n\r\n", (b"TRACE", *G[1:])),
    taken("PUT", "RFC 9110, 9.3.4", b"PUT" + post(b"content-length: 3\r\n", b"abc")[4:], (b"PUT", *X[1:])),
    refused("the preface of HTTP/2", "RFC 9113, 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("an answer", "2.1", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    refused("a TLS greeting", "2.2", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    refused("nothing but zeros", "2.2", bytes(64)),
]

CONNECTIONS = [
    taken("HTTP/1.0 closes", "9.3", get(version=b"1.0"), G, closes=True),
    taken("HTTP/1.0 with keep-alive closes here", "9.3", get(b"connection: keep-alive\r\n", version=b"1.0"), G, closes=True),
    taken("HTTP/1.0 without a host", "3.2", b"GET /x HTTP/1.0\r\n\r\n", G, closes=True),
    taken("close", "9.6", get(b"connection: close\r\n") + SMUGGLED, G, closes=True),
    taken("close, in capitals", "9.6", get(b"Connection: CLOSE\r\n") + SMUGGLED, G, closes=True),
    taken("close in a list", "9.6", get(b"connection: x, close\r\n") + SMUGGLED, G, closes=True),
    taken("close and keep-alive", "9.6", get(b"connection: keep-alive, close\r\n") + SMUGGLED, G, closes=True),
    taken(
        "an option that names a framing field", "9.6", post(b"connection: content-length\r\ncontent-length: 3\r\n", b"abc"), X
    ),
    taken("three pipelined", "9.3.2", get() + post(b"content-length: 3\r\n", b"abc") + post(CHUNKED, ONE), G, X, X),
    refused("a bad one after a good one", "9.3.2", get() + b"GET /y\r\n\r\n", 505, G),
    refused("both lengths after a good one", "6.3 (3)", get() + post(CHUNKED + b"content-length: 1\r\n", ONE), 400, G),
    refused("a body shorter than it is", "6.3", post(b"content-length: 3\r\n", b"abcd" + SMUGGLED[1:]), 400, X),
    refused("upgrade to h2c", "7.8 (RFC 9110)", get(b"connection: upgrade\r\nupgrade: h2c\r\n") + SMUGGLED, 501),
    refused(
        "upgrade with a body",
        "7.8 (RFC 9110)",
        post(b"connection: upgrade\r\nupgrade: x\r\ncontent-length: 3\r\n", b"abc"),
        501,
    ),
    refused("upgrade to websocket", "RFC 6455", get(b"connection: upgrade\r\nupgrade: websocket\r\n"), 501),
    refused("upgrade that the connection does not name", "7.8 (RFC 9110)", get(b"upgrade: h2c\r\n"), 501),
    refused("expect something else", "10.1.1 (RFC 9110)", post(b"expect: 200-ok\r\ncontent-length: 3\r\n", b"abc"), 417),
    refused(
        "expect twice",
        "10.1.1 (RFC 9110)",
        post(b"expect: 100-continue\r\nexpect: 100-continue\r\ncontent-length: 3\r\n", b"abc"),
    ),
    Case(
        "expect 100-continue",
        "10.1.1 (RFC 9110)",
        post(b"expect: 100-Continue\r\ncontent-length: 3\r\n", b"abc"),
        (100, 200),
        (X,),
        False,
    ),
    refused("expect with both lengths", "6.3 (3)", post(b"expect: 100-continue\r\ncontent-length: 3\r\n" + CHUNKED, b"abc")),
    Case("the end in the request line", "2.2 (8)", b"GET /x HT", (), eof=True),
    Case("the end in the head", "8", b"GET /x HTTP/1.1\r\nhost: a\r\n", (), eof=True),
    Case("the end in a counted body", "8", post(b"content-length: 3\r\n", b"ab"), (), eof=True),
    Case("the end in a chunk size", "8", post(CHUNKED, b"3"), (), eof=True),
    Case("the end in a chunk", "8", post(CHUNKED, b"3\r\nab"), (), eof=True),
    Case("the end before the last chunk", "8", post(CHUNKED, b"3\r\nabc\r\n"), (), eof=True),
    Case("the end within the last chunk", "8", post(CHUNKED, b"3\r\nabc\r\n0\r\n"), (), eof=True),
    Case("nothing at all", "9.5", b"", (), eof=True),
]

CASES = [*BOTH_LENGTHS, *CODINGS, *LENGTHS, *CHUNKS, *LINES, *REQUEST_LINES, *CONNECTIONS]


def by_h11(data: bytes) -> tuple[list[Seen], bool]:
    """The requests that h11 reads, each answered, and whether it refused the stream in the end."""
    found, refused = read_by_h11(data)
    return [one for one, _ in found], refused


def read_by_h11(data: bytes) -> tuple[list[tuple[Seen, list[tuple[bytes, bytes]]]], bool]:
    """The same, with the fields of each request."""
    parser, seen = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), []
    parser.receive_data(data)
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                seen.append(((head.method, head.target, body), list(head.headers)))
                status = 501 if head.method == b"CONNECT" else 200
                parser.send(h11.Response(status_code=status, headers=[(b"content-length", b"0")]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                    return seen, False
                parser.start_next_cycle()
            else:
                return seen, False
    except h11.RemoteProtocolError:
        return seen, True
