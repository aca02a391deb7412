"""``modelkeep.open_sealed`` and ``load_file``: a sealed model from Python, its tensors decrypted when they are asked for.

Every byte is checked before it is handed out: a tensor whose stream, digest or place in the index does not hold is never seen.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.keys.uri import is_key_uri
from modelkeep.adapters.tails import SealedReader
from modelkeep.app.filekeys import IDENTITY_PREFIX, Keychain, ProviderOpener
from modelkeep.container.bundle import FilePart
from modelkeep.container.file import split_file, unpack_file
from modelkeep.container.layout import Kind
from modelkeep.container.open import SealedFile
from modelkeep.container.recipients import KmsRecipient, Opener, Passphrase, XWingOpener, parse_recipients
from modelkeep.core.ports import Wrapper, WrappingKeys
from modelkeep.core.values import Digest
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.formats.safetensors import BITS, as_array

Key = Opener | Wrapper | WrappingKeys | bytes | str | Path
"""A passphrase (bytes), an identity's text or a key URI (str), a file of identities (Path), or an object that unwraps."""

PURPOSES = ("file", "model")
"""What a file may have been sealed for to open here: by ``modelkeep seal``, or exported by a keep."""

_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""safetensors dtypes that numpy lacks, by their names in the package ml_dtypes."""


class TensorInfo(NamedTuple):
    """A tensor's safetensors dtype (``F32``), its shape, and its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class SealedTensors(Mapping[str, NDArray[Any]]):
    """An opened sealed file: a mapping of tensor names to arrays, each decrypted and checked when it is asked for.

    Safe for threads; a context manager. Arrays are fresh and writable, and stay when the file is closed. A source that is not
    a safetensors file has no tensors: ``read``, ``files`` and ``read_file`` give its bytes.
    Reading raises NotTrusted (altered), Unavailable (the disk), Invalid (a dtype that numpy lacks: ``raw`` has it).
    """

    def __init__(self, reader: SealedReader, sealed: SealedFile) -> None:
        self._reader = reader
        self._sealed = sealed
        self._info: dict[str, TensorInfo] = {}
        if sealed.kind is Kind.SAFETENSORS:
            for entry in sealed.entries:
                size = self._info[entry.name].nbytes if entry.name in self._info else 0
                self._info[entry.name] = TensorInfo(entry.dtype, entry.shape, size + entry.length)

    @property
    def model_digest(self) -> Digest:
        """SHA-256 of the source file, as its sealer stated it."""
        return self._sealed.model_digest

    @property
    def root(self) -> bytes:
        """The Merkle root over head and tensors: what a sealing statement signs."""
        return self._sealed.root()

    @property
    def size(self) -> int:
        """Bytes of the source file."""
        return self._sealed.source_size

    def names(self) -> tuple[str, ...]:
        """The tensors, in the order of their bytes."""
        return tuple(self._info)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of one tensor; nothing is decrypted for it. Raises Missing."""
        if name not in self._info:
            raise Missing(f"the sealed file has no tensor {name[:80]!r}")
        return self._info[name]

    def metadata(self) -> dict[str, str]:
        """The ``__metadata__`` of a safetensors file."""
        head = msgspec.json.decode(self._sealed.head[8:], type=_Head) if self._info else _Head()
        return head.metadata

    def raw(self, name: str, *, threads: int | None = None) -> NDArray[Any]:
        """The bits of one tensor as unsigned integers of its width, in its shape; packed dtypes (F4, F6) as flat bytes."""
        dtype, shape, data = self._sealed.read_tensor(name, threads=threads)
        return as_array(f"U{BITS[dtype]}", shape, data) if BITS[dtype] % 8 == 0 else np.frombuffer(data, np.uint8)

    def load(self, *, threads: int | None = None) -> dict[str, NDArray[Any]]:
        """Every tensor, as views of one buffer that parallel threads decrypt to. Raises Invalid (not a safetensors file)."""
        return {name: _as_array(name, info, data) for name, info, data in self.parts(threads=threads)}

    def parts(self, *, threads: int | None = None) -> list[tuple[str, TensorInfo, memoryview]]:
        """Name, info and bytes of every tensor: views of one buffer, checked. Raises Invalid (not a safetensors file)."""
        if self._sealed.kind is not Kind.SAFETENSORS:
            raise Invalid("the sealed file is no safetensors file and has no tensors: read() gives its bytes")
        whole = self._sealed.read_source(threads=threads)
        at, found = len(self._sealed.head), []
        for name, info in self._info.items():
            found.append((name, info, whole[at : at + info.nbytes]))
            at += info.nbytes
        return found

    def read(self, *, threads: int | None = None) -> memoryview:
        """The source file, byte for byte, in a fresh buffer."""
        return self._sealed.read_source(threads=threads)

    def files(self) -> tuple[FilePart, ...]:
        """The files of a source that has several, the model first; empty for a source that is one file."""
        return self._sealed.files()

    def read_file(self, name: str, *, threads: int | None = None) -> memoryview:
        """One file of a source that has several. Raises Missing."""
        return self._sealed.read_file(name, threads=threads)

    def close(self) -> None:
        """Close the file; idempotent. Arrays that were read stay."""
        self._reader.close()

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One tensor as an array of its dtype. Raises KeyError (no such tensor), and as reading does."""
        if name not in self._info:
            raise KeyError(name)
        return _as_array(name, self._info[name], self._sealed.read_tensor(name).data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._info)

    def __len__(self) -> int:
        return len(self._info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Head(msgspec.Struct, frozen=True):
    """What ``metadata`` takes from a header that the container has parsed and checked already."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


def open_sealed(path: str | PathLike[str], keys: Key | Sequence[Key], *, root: bytes | None = None) -> SealedTensors:
    """Open a sealed file with the first of ``keys`` that fits.

    ``keys``: a passphrase as bytes; the text of an identity (``modelkeep-recovery-…``) or a key URI (``vault:…``) as str; a
    file of identities as Path; an opener, wrapper or provider object; or several of them. ``root``: the signed Merkle root;
    give it whenever there is one, since without it anyone who holds the file's data key may be its sealer.
    Raises NotTrusted (plaintext, foreign, cut, altered, no key fits, not the signed model), Invalid (not a key), Missing,
    Unavailable, and what a provider raises.
    """
    openers = [opener for key in _several(keys) for opener in _openers(key)]
    reader = SealedReader(Path(path))
    try:
        purpose = parse_recipients(split_file(reader).block).purpose
        if purpose not in PURPOSES:
            raise NotTrusted(f"{path} is sealed for {purpose[:80]!r}, and is neither a file nor a model: it does not open here")
        return SealedTensors(reader, unpack_file(reader, openers, purpose=purpose, root=root))
    except BaseException:
        reader.close()
        raise


def load_file(
    path: str | PathLike[str], keys: Key | Sequence[Key], *, root: bytes | None = None, threads: int | None = None
) -> dict[str, NDArray[Any]]:
    """The tensors of a sealed safetensors file, as ``safetensors.numpy.load_file`` gives those of a plain one.

    All are views of one buffer. Raises as ``open_sealed`` and ``SealedTensors.load``.
    """
    with open_sealed(path, keys, root=root) as sealed:
        return sealed.load(threads=threads)


def _several(keys: Key | Sequence[Key]) -> Sequence[Key]:
    return keys if isinstance(keys, Sequence) and not isinstance(keys, bytes | str) else [keys]


def _openers(key: Key) -> Sequence[Opener]:
    """What unwraps with ``key``. Quotes no key: it may be a secret."""
    if isinstance(key, bytes):
        return [Passphrase(key)]
    if isinstance(key, Path) or (isinstance(key, str) and is_key_uri(key)):
        return Keychain().openers([str(key)])
    if isinstance(key, str):
        if not key.strip().startswith(IDENTITY_PREFIX):
            raise Invalid("a key given as text is an identity or a key URI: give a passphrase as bytes, a file of keys as Path")
        return [XWingOpener(key.strip())]
    if hasattr(key, "opens"):
        return [ProviderOpener(cast("WrappingKeys", key))]
    if hasattr(key, "wrap"):
        return [KmsRecipient(cast("Wrapper", key))]
    if not hasattr(key, "unwrap"):
        raise Invalid(f"a {type(key).__name__} is not a key: give bytes, text, a Path, or an object that unwraps")
    return [key]


def _as_array(name: str, info: TensorInfo, data: memoryview) -> NDArray[Any]:
    if info.dtype not in _ML_DTYPES:
        if BITS[info.dtype] % 8:
            raise Invalid(f"numpy has no dtype for {info.dtype} (tensor {name[:80]!r}): raw() gives its bytes")
        return as_array(info.dtype, info.shape, data)
    dtype = np.dtype(getattr(_ml_dtypes(name, info), _ML_DTYPES[info.dtype]))
    return np.frombuffer(data, dtype).reshape(info.shape)


def _ml_dtypes(name: str, info: TensorInfo) -> ModuleType:
    try:
        return importlib.import_module("ml_dtypes")
    except ModuleNotFoundError as cause:
        raise Invalid(
            f"numpy has no dtype for {info.dtype} (tensor {name[:80]!r}): 'pip install ml_dtypes', or read its bits with raw()"
        ) from cause
