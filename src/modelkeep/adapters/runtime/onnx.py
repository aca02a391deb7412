"""ONNX models in process, on onnxruntime, from memory alone.

The model never touches a path: it comes as bytes, external data has no folder to come from, and no custom operator library
is ever registered.
"""

from collections.abc import Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _ort

from modelkeep.errors import Invalid, NotTrusted, Unavailable

_NOWHERE = "/nonexistent/modelkeep-serves-no-external-data"
_CANNOT_LOAD = (
    _ort.InvalidGraph,
    _ort.InvalidProtobuf,
    _ort.InvalidArgument,
    _ort.NoModel,
    _ort.NoSuchFile,
    _ort.NotImplemented,
    _ort.Fail,
    _ort.RuntimeException,
    _ort.EPFail,
)


class OnnxRuntime:
    """``Runtime`` for one ONNX model.

    ``threads``: of one run; 1 keeps a small model's run within microseconds. Raises NotTrusted if the bytes are no model that
    onnxruntime can run.
    """

    def __init__(self, model: bytes | bytearray, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        try:
            self._session = onnxruntime.InferenceSession(bytes(model), options, providers=["CPUExecutionProvider"])
        except _CANNOT_LOAD as cause:
            raise NotTrusted(f"onnxruntime cannot load the model: {_first_line(cause)}") from None
        self._names = [output.name for output in self._session.get_outputs()]
        self._run = self._session._sess.run  # the library's own ``run`` looks for missing inputs first, as ``InputPlan`` did

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises Invalid (the model refuses the input), Unavailable."""
        try:
            found = self._run(self._names, feeds, None)
        except (_ort.InvalidArgument, _ort.Fail, ValueError) as cause:  # Fail: one of its operators refuses it, such as a word
            raise Invalid(f"the model does not take this input: {_first_line(cause)}") from None
        except (_ort.RuntimeException, _ort.NotImplemented) as cause:
            raise Unavailable(f"the model failed on this input: {_first_line(cause)}") from None
        return dict(zip(self._names, found, strict=True))


def _first_line(cause: Exception) -> str:
    return str(cause).partition("\n")[0][:200]
