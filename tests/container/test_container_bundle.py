"""Several files in one container, and copies of a source to files: the same bytes again, and no name that leads elsewhere."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from forge import assemble, flip, fresh_streams, listing, with_entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.container import BytesReader, FilesReader, Kind, layout, open_sealed, pack_file, read_bytes, seal, unpack_file
from modelkeep.container.bundle import MAX_FILES, encode_files, parse_files, read_list
from modelkeep.core.values import digest_of
from modelkeep.errors import Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PART = st.text("abc.é -", min_size=1, max_size=6).filter(lambda part: part not in (".", ".."))
NAMES = st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6, unique=True)
MODEL = {"model.onnx": b"graph" * 9, "w/0.bin": bytes(40_000), "w/1.bin": b"", "a.txt": b"note"}


class Memory:
    """A ``Writer`` over memory."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def write_at(self, offset: int, data: memoryview) -> None:
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data


def bundle(files: dict[str, bytes]) -> FilesReader:
    return FilesReader([(name, BytesReader(data)) for name, data in files.items()])


def seal_all(source, **how):
    sealing = seal(source, **how)
    body = b"".join(bytes(chunk) for chunk in sealing.chunks())
    return body, sealing.model, open_sealed(BytesReader(body), sealing.model.dek, root=sealing.model.root)


def written(opened, name=None, threads=3) -> bytes:
    if name is None:
        memory = Memory(opened.source_size)
        opened.write_to(memory, threads=threads)
    else:
        memory = Memory(next(file.size for file in opened.files() if file.name == name))
        opened.write_file(name, memory, threads=threads)
    return bytes(memory.data)


# -- the list of files --


def test_a_list_by_hand():
    head = encode_files([("m", 3), ("w/é", 258)])
    assert head == b"KEEPFLS\n" + b"\0\0\0\2" + b"\0\1m" + bytes(7) + b"\3" + b"\0\4w/\xc3\xa9" + bytes(6) + b"\1\2"
    assert [tuple(file) for file in parse_files(head)] == [("m", 3, 37), ("w/é", 258, 40)]


@relaxed
@given(names=NAMES)
def test_a_list_that_is_made_is_read_and_every_cut_is_refused(names):
    rows = [(name, index) for index, name in enumerate([names[0], *sorted(names[1:], key=str.encode)])]
    try:
        head = encode_files(rows)
    except Invalid as refused:
        assert "folder of another" in str(refused)
        return
    assert [(file.name, file.size) for file in parse_files(head)] == rows
    assert read_list(BytesReader(head + b"what follows")) == head
    for length in range(len(head)):
        with pytest.raises(Invalid):
            parse_files(head[:length])
        with pytest.raises(ModelkeepError):
            read_list(BytesReader(head[:length]))


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_garbage_is_never_a_list_unless_it_says_exactly_that(garbage):
    for head in (garbage, b"KEEPFLS\n" + garbage, b"KEEPFLS\n\0\0\0\1" + garbage):
        try:
            files = parse_files(head)
        except Invalid:
            continue
        assert listing([(file.name.encode(), file.size) for file in files]) == head


BAD_NAMES = [
    "",
    ".",
    "..",
    "/",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/..",
    "a/./b",
    "a\\b",
    "a\0",
    "a\n",
    "a\x7f",
    "\ud800",
    "x" * 256,
    "/".join("x" * 33),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize("place", [0, 1])
def test_names_that_are_not_plain_and_relative_are_refused(name, place):
    rows = [("model", BytesReader(b"x"))]
    rows.insert(place, (name, BytesReader(b"y")))
    with pytest.raises(Invalid) as caught:
        FilesReader(rows)
    assert "\n" not in str(caught.value)


def test_limits_on_a_list():
    for names in (["a", "a"], ["b", "a", "b"], ["a/b", "a"], ["m", "a", "a/b/c"]):
        with pytest.raises(Invalid):
            FilesReader([(name, BytesReader(b"")) for name in names])
    with pytest.raises(Invalid, match="1 to 16384 files"):
        FilesReader([])
    with pytest.raises(Invalid, match="1 to 16384 files"):
        encode_files([(f"{number:05}", 0) for number in range(MAX_FILES + 1)])
    assert len(parse_files(encode_files([(f"{number:05}", 0) for number in range(MAX_FILES)]))) == MAX_FILES


# -- several files as one source --


def test_the_model_comes_first_and_the_rest_in_order_of_their_names():
    one, two = bundle(MODEL), bundle(dict([*list(MODEL.items())[:1], *list(MODEL.items())[:0:-1]]))
    assert one.head == two.head
    assert [file.name for file in parse_files(one.head)] == ["model.onnx", "a.txt", "w/0.bin", "w/1.bin"]


@relaxed
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), data=st.data())
def test_any_range_of_a_source_of_several(sizes, data):
    files = {f"f{number}": bytes([65 + number]) * size for number, size in enumerate(sizes)}
    source = bundle(files)
    whole = source.head + b"".join(files.values())
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    assert source.size == len(whole)
    assert read_bytes(source, start, length) == whole[start : start + length]
    with pytest.raises(NotTrusted):
        source.read_into(start, memoryview(bytearray(len(whole) - start + 1)))


@relaxed
@given(names=NAMES, seed=st.integers(0, 99))
def test_any_files_come_back_together_and_alone(names, seed):
    rng = np.random.default_rng(seed)
    files = {name: rng.bytes(int(rng.integers(0, 40_000))) for name in names}
    try:
        source = bundle(files)
    except Invalid:
        return
    body, model, opened = seal_all(source)
    assert (model.kind, opened.kind, opened.suite) == (Kind.FILES, Kind.FILES, 2)
    whole = read_bytes(source, 0, source.size)
    assert opened.read_source() == whole == b"".join(bytes(chunk) for chunk in opened.chunks()) == written(opened)
    assert model.model_digest == digest_of(whole)
    assert next(iter(names)) == opened.files()[0].name
    for name, data in files.items():
        assert opened.read_file(name) == data == written(opened, name)
    assert len(body) == model.size


def test_one_reader_may_stand_for_several_files():
    one = BytesReader(b"same")
    source = FilesReader([("m", one), ("a", one), ("b", one)])
    assert read_bytes(source, len(source.head), 12) == b"same" * 3
    assert seal_all(source)[2].read_file("a") == b"same"


def test_a_file_that_shrinks_while_it_is_sealed_is_refused():
    class Shrinking(BytesReader):
        @property
        def size(self) -> int:
            return super().size + 1

    for files in ([("m", Shrinking(b"x")), ("a", BytesReader(b"y"))], [("m", BytesReader(b"x")), ("a", Shrinking(b"y"))]):
        with pytest.raises(NotTrusted, match="truncated"):
            list(seal(FilesReader(files)).chunks())


def test_a_large_file_among_several_is_split(monkeypatch):
    monkeypatch.setattr(layout, "STREAM_LIMIT", 1000)
    files = {"m": b"m" * 10, "w": np.random.default_rng(1).bytes(3500)}
    _, _, opened = seal_all(bundle(files))
    assert [(entry.name, entry.length) for entry in opened.entries] == [
        ("m", 10), ("w", 1000), ("w", 1000), ("w", 1000), ("w", 500),
    ]  # fmt: skip
    assert opened.read_file("w", threads=2) == files["w"] == written(opened, "w")


def test_a_file_that_is_not_there_is_missing(sealed):
    _, _, opened = seal_all(bundle(MODEL))
    for name in ("nope", "w", ""):
        with pytest.raises(Missing):
            opened.read_file(name)
        with pytest.raises(Missing):
            opened.write_file(name, Memory(0))
    with pytest.raises(Missing, match="no tensor"):
        opened.read_tensor("model.onnx")
    body, model = sealed(b"one file")
    assert open_sealed(BytesReader(body), model.dek).files() == ()
    with pytest.raises(Missing):
        open_sealed(BytesReader(body), model.dek).read_file("")


def test_a_file_never_becomes_several_because_of_what_is_in_it(sealed):
    source = read_bytes(bundle(MODEL), 0, bundle(MODEL).size)
    body, model = sealed(source)
    opened = open_sealed(BytesReader(body), model.dek)
    assert (opened.kind, opened.files(), opened.head) == (Kind.BYTES, (), b"")
    assert opened.read_source() == source


def test_a_kind_that_the_source_is_not_of_is_invalid(tensors):
    for source, kind in ((b"text", Kind.SAFETENSORS), (b"text", Kind.FILES), (tensors, Kind.FILES), (b"", Kind.FILES)):
        with pytest.raises(Invalid):
            list(seal(BytesReader(source), kind=kind).chunks())
    _, model, opened = seal_all(BytesReader(tensors), kind=Kind.BYTES)
    assert (model.kind, opened.read_source()) == (Kind.BYTES, tensors)


def test_a_standalone_file_holds_several(kms):
    file = b"".join(bytes(chunk) for chunk in pack_file(bundle(MODEL), [kms], purpose="file"))
    opened = unpack_file(BytesReader(file), [kms], purpose="file")
    assert {part.name: bytes(opened.read_file(part.name)) for part in opened.files()} == MODEL


# -- anything else comes back byte for byte, unread --


def torch_zip() -> bytes:
    """What torch.save writes: a zip of stored members, the pickle first. No torch is needed to make one, nor to seal it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"weight": list(range(50))}))
        archive.writestr("model/byteorder", "little")
        archive.writestr("model/data/0", np.arange(9000, dtype=np.float32).tobytes())
    return out.getvalue()


@pytest.mark.parametrize(
    "source",
    [torch_zip(), pickle.dumps([1, 2, 3]), b"GGUF\x03\0\0\0" + bytes(90), b"\x89HDF\r\n\x1a\n" + bytes(90), bytes(70_000)],
    ids=["torch zip", "pickle", "gguf", "hdf5", "zeroes"],
)
def test_other_formats_are_shards(source):
    _, model, opened = seal_all(BytesReader(source))
    assert model.kind is Kind.BYTES
    assert opened.read_source() == source == written(opened)


# -- copies --


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 262_400, 262_401, 3 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_copies_of_sizes_around_chunks_and_pieces(size, threads, monkeypatch):
    monkeypatch.setattr(layout, "STREAM_LIMIT", 1 << 20)
    data = np.random.default_rng(size).bytes(size)
    _, _, opened = seal_all(BytesReader(data))
    assert written(opened, threads=threads) == data


def test_nothing_that_was_altered_is_copied_or_sealed_anew_as_if_it_were_whole(monkeypatch, tensors):
    monkeypatch.setattr(layout, "STREAM_LIMIT", 4000)
    body, model, _ = seal_all(BytesReader(tensors))
    for position in range(60, len(body) - 1500, 97):
        opened = open_sealed(BytesReader(flip(body, position)), model.dek, root=model.root)
        with pytest.raises(NotTrusted):
            written(opened)
        sealing = seal(opened.as_source(), kind=opened.kind)
        with pytest.raises(NotTrusted):
            list(sealing.chunks())
        with pytest.raises(Invalid):
            _ = sealing.model


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 3 * 16384, 262_400])
def test_the_last_stream_is_checked_before_its_last_byte_is_handed_out(size):
    """Also where its last Cobblestone chunk is empty, and where the stream itself is."""
    data = bytes(size)
    _, _, opened = seal_all(bundle({"m": data}))
    dek, index = bytes(32), opened._index
    header, streams = fresh_streams([data], dek)
    forged = open_sealed(BytesReader(assemble(header, streams, with_entry(index, 0, digest=bytes(32)), dek)), dek)
    whole = assemble(header, streams, index.encode(), dek)
    cut_tag = open_sealed(BytesReader(flip(whole, 48 + len(streams[0]) - 1)), dek)
    for damaged in (forged, cut_tag):
        with pytest.raises(NotTrusted):
            read_bytes(damaged.as_source(), 0, damaged.source_size)
        with pytest.raises(NotTrusted):
            written(damaged)
        with pytest.raises(NotTrusted):
            damaged.read_source()
        with pytest.raises(NotTrusted):
            list(damaged.chunks())
        with pytest.raises(NotTrusted):
            list(seal(damaged.as_source(), kind=Kind.FILES).chunks())
    assert read_bytes(open_sealed(BytesReader(whole), dek).as_source(), 0, opened.source_size) == opened.read_source()


def test_thousands_of_files_are_looked_up_and_not_searched_for():
    """With one pass over all names and streams for each file, a small file would keep its opener busy for an hour."""
    _, _, opened = seal_all(bundle({"m": b"m", **{f"{'d/' * 20}{number:05}": b"" for number in range(4_000)}}))
    assert sum(len(written(opened, part.name)) for part in opened.files()) == 1


def test_a_writer_that_fails_ends_the_copy(tensors):
    class Full:
        def write_at(self, offset, data):
            raise Unavailable("the disk is full")

    _, _, opened = seal_all(BytesReader(tensors))
    with pytest.raises(Unavailable, match="full"):
        opened.write_to(Full())


@pytest.mark.parametrize("source", [bundle(MODEL), BytesReader(torch_zip()), BytesReader(b""), BytesReader(bytes(3 << 20))])
def test_sealing_anew_needs_no_plaintext_file_and_keeps_root_and_digest(source):
    body, model, opened = seal_all(source)
    again, anew, reopened = seal_all(opened.as_source(), kind=opened.kind)
    assert (anew.root, anew.model_digest, anew.kind) == (model.root, model.model_digest, model.kind)
    assert anew.dek != model.dek
    assert len(again) == len(body)
    assert reopened.read_source() == opened.read_source()


def test_safetensors_are_sealed_anew_tensor_by_tensor(tensors):
    _, model, opened = seal_all(BytesReader(tensors))
    _, anew, reopened = seal_all(opened.as_source(), kind=opened.kind)
    assert (anew.root, reopened.read_tensor("layer.bias").shape) == (model.root, (60,))


def test_a_source_that_is_read_in_order_says_so(tensors):
    _, _, opened = seal_all(BytesReader(tensors))
    source = opened.as_source()
    assert source.size == len(tensors)
    assert read_bytes(source, 0, 8) == tensors[:8] == read_bytes(source, 0, 8)
    half = len(opened.head) + 100
    assert read_bytes(source, 4, half - 4) == tensors[4:half]
    with pytest.raises(Invalid, match="in order"):
        read_bytes(source, half - 1, 1)
    with pytest.raises(Invalid, match="in order"):
        read_bytes(source, half + 1, 1)
    assert read_bytes(source, half, len(tensors) - half) == tensors[half:]
    with pytest.raises(NotTrusted, match="truncated"):
        source.read_into(len(tensors), memoryview(bytearray(1)))
