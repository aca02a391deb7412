"""Requests and answers of the REST protocol: JSON, alone or followed by tensors in their raw form.

Source: Triton's "Binary tensor data extension". The header ``inference-header-content-length`` tells where the JSON ends; after
it come the tensors that have ``binary_data_size``, in the order of the JSON, and nothing else. The answer is binary where the
request asks for that (``binary_data`` of an output, else ``binary_data_output``), in whatever form the request came.
"""

import re
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid
from modelkeep.serving.oip import (
    BINARY_SIZE,
    MAX_TENSORS,
    InputTensor,
    Outputs,
    Question,
    Reply,
    Request,
    Tensor,
    as_array,
    colons,
    decode_request,
    decode_strictly,
    encode_response,
    refuse_twice,
)
from modelkeep.serving.raw import RawTensor, hold, to_raw


class _MixedTensor(Tensor, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One input of a request with binary tensors: ``data``, or the parameter ``binary_data_size``."""

    data: Raw | UnsetType = UNSET  # type: ignore[assignment]  # only here may it be missing


class _MixedRequest(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    inputs: Annotated[list[_MixedTensor], Meta(min_length=1, max_length=MAX_TENSORS)]


class BinaryRequest(Request, frozen=True, kw_only=True):
    """An inference request of which some inputs came raw."""

    inputs: list[InputTensor]


_REQUEST = msgspec.json.Decoder(_MixedRequest)


def decode_binary_request(body: bytes, json_size: int) -> BinaryRequest:
    """Parse a body of ``json_size`` bytes of JSON and the raw tensors after them. Raises Invalid."""
    head = body[:json_size]
    said = decode_strictly(_REQUEST, head)
    given = [tensor.data is not UNSET for tensor in said.inputs]
    if head.count(b":") != colons(said, said.inputs, (BINARY_SIZE,)) - given.count(False) or b"\\" in head:
        refuse_twice(head)
    inputs: list[InputTensor] = []
    at, view = json_size, memoryview(body)
    for tensor, has_data in zip(said.inputs, given, strict=True):
        size = _binary_size(tensor)
        if has_data == (size is not None):
            raise Invalid(f"input {tensor.name!r} needs either data or {BINARY_SIZE}, and not both")
        if size is None:
            inputs.append(tensor)
            continue
        if size > len(body) - at:
            raise Invalid(f"input {tensor.name!r} has {len(body) - at} bytes left of the body, and {BINARY_SIZE} says {size}")
        inputs.append(RawTensor(tensor.name, tensor.datatype, tensor.shape, hold(view[at : at + size], len(body))))
        at += size
    if at != len(body):
        raise Invalid(f"{len(body) - at} bytes after the JSON belong to no input")
    return BinaryRequest(
        inputs=inputs, id=said.id, model_name=said.model_name, outputs=said.outputs, parameters=said.parameters
    )


def _binary_size(tensor: _MixedTensor) -> int | None:
    size = tensor.parameters.get(BINARY_SIZE) if tensor.parameters is not UNSET else None
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise Invalid(f"input {tensor.name!r}: {BINARY_SIZE} is not a number of bytes")
    return size


class RestForm(msgspec.Struct, frozen=True):
    """``Form`` of one REST request. ``json_size``: the header ``inference-header-content-length`` as it came, None without."""

    json_size: bytes | None = None

    def read(self, body: bytes) -> Question:
        """Parse a request. Raises Invalid."""
        if self.json_size is None:
            return decode_request(body)
        if not _LENGTH.match(self.json_size) or int(self.json_size) > len(body):
            raise Invalid("inference-header-content-length is not the size of the JSON that the body begins with")
        return decode_binary_request(body, int(self.json_size))

    def write(self, ref: ReleaseRef, request: Question, outputs: Outputs) -> Reply:
        """The answer, its outputs raw where the request asks for that."""
        if request.outputs is UNSET and request.parameters is UNSET:
            return Reply(encode_response(ref, request.id, outputs))
        names = _binary_names(request, outputs)
        raw = {spec.name: to_raw(as_array(values), spec.datatype) for spec, values in outputs if spec.name in names}
        if not raw:
            return Reply(encode_response(ref, request.id, outputs))
        head = encode_response(ref, request.id, outputs, {name: len(data) for name, data in raw.items()})
        return Reply(b"".join((head, *raw.values())), len(head))


JSON = RestForm()
"""A request that is JSON and nothing else."""
_LENGTH = re.compile(rb"[1-9][0-9]{0,9}\Z")


def _binary_names(request: Question, outputs: Outputs) -> set[str]:
    """The outputs that the request wants raw."""
    usual = request.parameters is not UNSET and request.parameters.get("binary_data_output", False) is True
    chosen = {spec.name: usual for spec, _ in outputs}
    for wanted in request.outputs or ():
        if wanted.parameters is not UNSET:
            chosen[wanted.name] = wanted.parameters.get("binary_data", usual) is True
    return {name for name, binary in chosen.items() if binary}
