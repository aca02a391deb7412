"""C2SP tlog-tiles: the specification's own examples, then laws for every size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.merkle import leaf_hash, root_of
from modelkeep.errors import Invalid, NotTrusted, TooLarge
from modelkeep.ledger.tiles import Growth, Tile, decode_bundle, decode_hashes, edge_root, encode_bundle, tiles_of


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(0, 1000), "tile/0/x001/000"),
        (Tile(2, 0, 1), "tile/2/000.p/1"),
        (Tile(-1, 273, 112), "tile/entries/273.p/112"),
        (Tile(63, 67, 255), "tile/63/067.p/255"),
        (Tile(-1, 1000000), "tile/entries/x001/x000/000"),
    ],
)
def test_known_paths(tile, path):
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p",
        "tile/entries/",
        "tile/data/000",
        "tile/0/000\n",
        "/tile/0/000",
        "tile/0/../000",
        "checkpoint",
        "tile/0/\u0661\u0661\u0661",
    ],
)
def test_paths_that_name_no_tile(path):
    with pytest.raises(Invalid):
        Tile.parse(path)


@given(st.integers(-1, 63), st.integers(0, 1 << 40), st.integers(1, 256))
def test_paths_round_trip(level, index, width):
    assert Tile.parse(Tile(level, index, width).path) == Tile(level, index, width)


def test_the_tree_of_70000_of_the_specification():
    tiles = list(tiles_of(70_000))
    assert sum(tile.level == 0 and tile.width == 256 for tile in tiles) == 273
    assert [tile for tile in tiles if tile.width < 256] == [
        Tile(-1, 273, 112),
        Tile(0, 273, 112),
        Tile(1, 1, 17),
        Tile(2, 0, 1),
    ]
    assert [tile for tile in tiles if tile.level == 1] == [Tile(1, 0), Tile(1, 1, 17)]


def test_the_tree_of_256_of_the_specification():
    assert list(tiles_of(256)) == [Tile(-1, 0), Tile(0, 0), Tile(1, 0, 1)]


def test_the_empty_tree_has_no_tiles():
    assert list(tiles_of(0)) == []


def test_a_known_bundle():
    assert encode_bundle([b"", b"abc"]) == b"\x00\x00\x00\x03abc"


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_bundles_round_trip_and_are_exact(entries):
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == entries
    for bad, width in (
        (data[:-1], len(entries)),
        (data, len(entries) + 1),
        (data + b"\0", len(entries)),
        (data, len(entries) - 1),
    ):
        with pytest.raises(NotTrusted):
            decode_bundle(bad, width)


def test_the_largest_entry():
    assert len(encode_bundle([b"x" * 65_535])) == 65_537
    with pytest.raises(TooLarge):
        encode_bundle([b"x" * 65_536])


def test_a_tile_has_exactly_its_hashes():
    assert decode_hashes(bytes(64), 2) == [bytes(32)] * 2
    for size in (63, 65, 32, 96):
        with pytest.raises(NotTrusted):
            decode_hashes(bytes(size), 2)


def tiles_by_definition(entries):
    """MTH(D[(n*256+i)*256^l : (n*256+i+1)*256^l]), straight from the specification."""
    files = {}
    leaves = [leaf_hash(entry) for entry in entries]
    for tile in tiles_of(len(entries)):
        if tile.level < 0:
            files[tile.path] = encode_bundle(entries[tile.index * 256 : tile.index * 256 + tile.width])
            continue
        step = 256**tile.level
        first = tile.index * 256
        files[tile.path] = b"".join(root_of(leaves[i * step : (i + 1) * step]) for i in range(first, first + tile.width))
    return files


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=4))
def test_growing_in_any_steps_makes_the_files_of_the_definition(steps):
    written, growth, entries = {}, Growth(), []
    for step in steps:
        batch = [b"entry %d" % (len(entries) + number) for number in range(step)]
        growth.grow(batch, written.__setitem__)
        entries += batch
        expected = tiles_by_definition(entries)
        assert {path: written.get(path) for path in expected} == expected
        assert growth.root() == root_of([leaf_hash(entry) for entry in entries])


def test_growth_past_the_second_level():
    leaves = [b"%d" % number for number in range(66_000)]
    written, growth = {}, Growth()
    full = growth.grow(leaves, written.__setitem__)
    assert set(written) == {tile.path for tile in tiles_of(66_000)}
    assert Tile(1, 0) in full
    assert edge_root(growth.edge, growth.size) == root_of([leaf_hash(leaf) for leaf in leaves])
