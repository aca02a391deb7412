"""Models that a thief (or an honest client) can ask: a gateway over HTTPS, or a bare ONNX file in this process.

Both answer ``predict(x) -> probs`` with the error tree of modelkeep, so that an attack cannot tell which it is asking.
"""

import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented

from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.puzzle import CHALLENGE_BYTES, solve
from modelkeep.errors import Invalid, ModelkeepError, OverBudget, Unavailable, WorkRequired

Array = NDArray[np.float64]

RECEIPT_HEADER = "modelkeep-record"
"""Response header that names the audit record of an answer: ``<instance>/<index>``."""

PUZZLE_HEADER, SOLUTION_HEADER = "modelkeep-puzzle", "modelkeep-solution"
MOST_HASHES = 1 << 28
"""A puzzle of more is left unsolved: one core needs longer for it than it is good for."""
_PUZZLE = re.compile(rf'"([0-9a-f]{{{2 * CHALLENGE_BYTES}}})";hashes=([1-9][0-9]{{0,18}});seconds=([1-9][0-9]{{0,8}})')

_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw


class _Inference(msgspec.Struct):
    outputs: tuple[_Output, ...]


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


class _Said(msgspec.Struct):
    value: float
    base_value: float


class _Explanation(msgspec.Struct):
    outputs: tuple[_Output, ...]
    parameters: _Said


class _Problem(msgspec.Struct):
    code: str = "error"
    detail: str = ""
    title: str = ""


def _tree(root: type[ModelkeepError]) -> Iterator[type[ModelkeepError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_BY_CODE = {error.code: error for error in _tree(ModelkeepError) if error.__module__ == ModelkeepError.__module__}


@dataclass(frozen=True)
class _Puzzle:
    """What a gateway set. ``end``: the monotonic second until which it is good."""

    challenge: bytes
    hashes: int
    end: float

    @classmethod
    def read(cls, answer: httpx.Response) -> Self | None:
        """The puzzle that came with a refusal; None without one, or with one that nobody here solves."""
        found = _PUZZLE.fullmatch(answer.headers.get(PUZZLE_HEADER, ""))
        if found is None or int(found[2]) > MOST_HASHES:
            return None
        return cls(bytes.fromhex(found[1]), int(found[2]), time.monotonic() + int(found[3]))


class HttpTarget:
    """One release behind a gateway, asked over the Open Inference Protocol v2 with an API key ("" = none is sent).

    ``receipts`` keeps the audit record of every answer, oldest first. When the gateway asks to come back later (429, 503 with
    Retry-After), it waits up to ``patience`` seconds in all for one answer before it gives up. A puzzle that the gateway sets
    is solved, for every question until it is over (docs/formats/puzzle.md): ``hashes`` counts what that took.
    """

    def __init__(
        self, url: str, model: ReleaseRef, key: str, *, ca: Path | None = None, patience: float = 0.0, timeout: float = 10.0
    ) -> None:
        """Does not connect yet. Raises Invalid (``ca`` is not a readable certificate file)."""
        self.receipts: list[str] = []
        self.hashes = 0
        self._puzzle: _Puzzle | None = None
        self._patience = patience
        self._path = f"/v2/models/{model.name}/versions/{model.version}"
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            verify=_trust(ca),
            timeout=timeout,
            headers={"authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )
        self._metadata: _Metadata | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def numbers(self) -> bool:
        """Whether the model's metadata say that it answers with one number a row, and no class. Raises as ``predict``."""
        return all(tensor.datatype in _FLOATS and tensor.shape[1:] in ((), (1,)) for tensor in self._known().outputs)

    def predict(self, x: Array) -> Array:
        """Class probabilities, or numbers, (n, k) for rows (n, d); one-hot where the gateway gives labels only.

        Raises the error whose code the gateway names, Unavailable when it cannot be reached.
        """
        known = self._known()
        body = self._body(known.inputs[0], x)
        answer = self._send("POST", f"{self._path}/infer", body)
        self.receipts.append(answer.headers.get(RECEIPT_HEADER, ""))
        return _probabilities(_decode(answer.content, _Inference).outputs, known, len(x))

    def explain(self, x: Array) -> Array:
        """Explanations of rows (n, d), one request for each row and class, of two classes only for the second: answers
        (n, k (2 + d)) as ``parts`` of the attacks reads them: probabilities, their means over the background, what each column
        moved. Raises as ``predict`` does."""
        known = self._known()
        classes = _classes(known)
        asked = [1] if classes == 2 else list(range(classes))
        wide = []
        for row in x:
            told = np.array([self._explain(known, row, target) for target in asked])
            if classes == 2:
                told = np.stack([np.concatenate([1.0 - told[0, :2], -told[0, 2:]]), told[0]])
            wide.append(np.concatenate([told[:, 0], told[:, 1], told[:, 2:].ravel()]))
        return np.array(wide)

    def _explain(self, known: _Metadata, row: Array, target: int) -> Array:
        """(2 + d,): the value, its mean over the background, what each column moved it."""
        body = self._body(known.inputs[0], row[None], {"target": target})
        answer = self._send("POST", f"{self._path}/explain", body)
        self.receipts.append(answer.headers.get(RECEIPT_HEADER, ""))
        said = _decode(answer.content, _Explanation)
        moved = [number for output in said.outputs for number in _decode(output.data, list[float])]
        if len(moved) != len(row):
            raise Unavailable(f"the gateway explained {len(moved)} numbers of a row that has {len(row)}")
        return np.array([said.parameters.value, said.parameters.base_value, *moved])

    def _known(self) -> _Metadata:
        if self._metadata is None:
            self._metadata = _decode(self._send("GET", self._path).content, _Metadata)
            if len(self._metadata.inputs) != 1:
                raise Invalid(f"{self._path} takes {len(self._metadata.inputs)} tensors: only models of one input can be asked")
        return self._metadata

    @staticmethod
    def _body(tensor: _Tensor, x: Array, parameters: dict[str, int] | None = None) -> bytes:
        # the shortest decimal that reads back as the same float, since the wire carries text
        values = x.astype(_FLOATS[tensor.datatype]) if tensor.datatype in _FLOATS else np.rint(x).astype(np.int64)
        shape = [len(x), *(x.shape[1:] if len(tensor.shape) <= 2 else tensor.shape[1:])]
        one = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": values.ravel().tolist()}
        return msgspec.json.encode({"inputs": [one], **({"parameters": parameters} if parameters else {})})

    def _send(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        left, paid, headers = self._patience, False, self._headers(body)
        while True:
            try:
                answer = self._http.request(method, path, content=body, headers=headers)
            except httpx.HTTPError as cause:
                raise Unavailable(f"no answer from {self._http.base_url}: {cause}") from cause
            if answer.is_success:
                return answer
            refusal, wait = _refusal(answer), _seconds(answer.headers.get("retry-after", ""))
            if isinstance(refusal, WorkRequired) and not paid and (puzzle := _Puzzle.read(answer)) is not None:
                self._puzzle, paid = puzzle, True
                headers = self._headers(body)
                continue
            if wait is None or wait > left:
                raise refusal
            time.sleep(wait)
            left -= max(wait, 0.01)

    def _headers(self, body: bytes | None) -> dict[str, str]:
        """Headers of a request, with the solution of the puzzle at hand, if there is one that is still good."""
        plain = {"content-type": "application/json"}
        puzzle = self._puzzle
        if body is None or puzzle is None or time.monotonic() >= puzzle.end:
            return plain
        nonce = solve(puzzle.challenge, body, puzzle.hashes, 20 * puzzle.hashes)
        self.hashes += int.from_bytes(nonce) + 1
        return plain | {SOLUTION_HEADER: (puzzle.challenge + nonce).hex()}


class Explained:
    """A ``HttpTarget`` as one that answers every row with its explanation."""

    def __init__(self, target: HttpTarget) -> None:
        self._target = target

    def predict(self, x: Array) -> Array:
        """Wide answers (n, k (2 + d)), see ``HttpTarget.explain``."""
        return self._target.explain(x)


class OnnxTarget:
    """A bare ONNX model in this process: what the thief would get with no defence, and what fidelity is measured against."""

    def __init__(self, model: bytes) -> None:
        """Raises Invalid (not a model that onnxruntime can load)."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented) as cause:
            raise Invalid("this is not an ONNX model that onnxruntime can load") from cause
        self._input = self._session.get_inputs()[0]
        self._output = next((o.name for o in self._session.get_outputs() if o.type == "tensor(float)"), None)
        if self._output is None:
            raise Invalid("this model has no float output to read probabilities from: export it without the ZipMap operator")

    def predict(self, x: Array) -> Array:
        """Class probabilities, or numbers, (n, k) for rows (n, d)."""
        rows = np.ascontiguousarray(x, dtype=np.float32)
        wanted = self._input.shape
        if len(wanted) > 2:
            rows = rows.reshape(len(rows), *wanted[1:])
        found = np.asarray(self._session.run([self._output], {self._input.name: rows})[0], dtype=np.float64)
        return found.reshape(len(rows), -1)


def _trust(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as cause:
        raise Invalid(f"{ca} is not a certificate file that can be read") from cause


def _decode(raw: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as cause:
        raise Unavailable(f"the gateway answered something that is not the Open Inference Protocol: {cause}") from cause


def _refusal(answer: httpx.Response) -> ModelkeepError:
    """The error of the tree that a problem+json body names; Unavailable for anything else."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Unavailable(f"the gateway answered {answer.status_code} without saying why")
    said = problem.detail or problem.title or f"the gateway answered {answer.status_code}"
    kind = _BY_CODE.get(problem.code, Unavailable)
    if issubclass(kind, OverBudget):
        return kind(said, _seconds(answer.headers.get("retry-after", "")) or 0.0)
    return kind(said)


def _seconds(text: str) -> float | None:
    """Seconds of a Retry-After header; None when it is missing or is a date."""
    try:
        return max(float(text), 0.0)
    except ValueError:
        return None


def _probabilities(outputs: tuple[_Output, ...], known: _Metadata, rows: int) -> Array:
    for output in outputs:
        if output.datatype in _FLOATS and len(output.shape) in (1, 2) and output.shape[0] == rows:
            return np.array(_decode(output.data, list[float]), dtype=np.float64).reshape(rows, -1)
    for output in outputs:
        if output.datatype.startswith(("INT", "UINT")) and output.shape[:1] == (rows,):
            return np.eye(_classes(known))[np.array(_decode(output.data, list[int]), dtype=np.int64).reshape(-1)]
    raise Unavailable("the gateway's answer holds neither probabilities nor class numbers")


def _classes(known: _Metadata) -> int:
    for tensor in known.outputs:
        if tensor.datatype in _FLOATS and len(tensor.shape) == 2 and tensor.shape[1] > 0:
            return tensor.shape[1]
    raise Invalid("the gateway answers with class numbers only and its metadata does not say how many classes there are")
