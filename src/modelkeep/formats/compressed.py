"""Unpack a compressed file within bounds: exactly one stream, nothing after it. Formats: zlib, gzip, bzip2, xz, lzma."""

import bz2
import lzma
import zlib

from modelkeep.errors import Invalid, TooLarge

MAX_UNPACKED = 32 << 20
MAX_DICTIONARY = 32 << 20

_CHUNK = 1 << 16


def unpack(data: memoryview) -> bytearray:
    """What is compressed in ``data``, at most 32 MiB more than its size. Raises Invalid (malformed, more follows), TooLarge."""
    prefix = bytes(data[:6])
    limit = MAX_UNPACKED + len(data)
    try:
        if prefix.startswith(b"\x1f\x8b") or prefix[:1] == b"\x78":
            return _inflate(zlib.decompressobj(31 if prefix[0] == 0x1F else 15), data, limit)
        if prefix.startswith(b"BZh"):
            return _expand(bz2.BZ2Decompressor(), data, limit)
        if prefix.startswith(b"\xfd7zXZ\x00"):
            return _expand(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY), data, limit)
        if prefix.startswith(b"]\x00\x00"):
            return _expand(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_DICTIONARY), data, limit)
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as cause:
        raise Invalid("the compressed bytes are malformed") from cause
    raise Invalid("the file is compressed in a way that is not understood")


def _inflate(inflate: "zlib._Decompress", data: memoryview, limit: int) -> bytearray:
    out, at, pending = bytearray(), 0, b""
    while not inflate.eof:
        if not pending:
            if at >= len(data):
                raise Invalid("the compressed bytes are cut off")
            pending, at = bytes(data[at : at + _CHUNK]), at + _CHUNK
        out += inflate.decompress(pending, 1 << 20)
        pending = inflate.unconsumed_tail
        _check(out, limit)
    if pending or inflate.unused_data or at < len(data):
        raise Invalid("bytes follow the end of the compressed ones")
    return out


def _expand(expand: "bz2.BZ2Decompressor | lzma.LZMADecompressor", data: memoryview, limit: int) -> bytearray:
    out, at = bytearray(), 0
    while not expand.eof:
        piece = b""
        if expand.needs_input:
            if at >= len(data):
                raise Invalid("the compressed bytes are cut off")
            piece, at = bytes(data[at : at + _CHUNK]), at + _CHUNK
        out += expand.decompress(piece, 1 << 20)
        _check(out, limit)
    if expand.unused_data or at < len(data):
        raise Invalid("bytes follow the end of the compressed ones")
    return out


def _check(out: bytearray, limit: int) -> None:
    if len(out) > limit:
        raise TooLarge(f"the file unpacks to more than {limit} bytes")
