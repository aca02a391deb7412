"""Sealed data sets over a real keep: who may read them, what stays on the disk, and what the log knows."""

import csv
import io
import sys

import msgspec
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from commandline import PASSPHRASE, copy_keep

from modelkeep.adapters.tables import read_table
from modelkeep.app.datachecks import read_fetched
from modelkeep.app.dataresults import DataFetched
from modelkeep.app.keep import Keep
from modelkeep.app.labelled import labelled
from modelkeep.app.verbs import call, table
from modelkeep.core.values import Principal, digest_of
from modelkeep.custody.datasets import DATASET, About
from modelkeep.custody.keys import DATA_KEK, GATEWAY_FAMILIES, OWNER_FAMILIES
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted
from modelkeep.ledger.attestations import Step

CREDIT = "credit-scoring"


def rows(count=3000, seed=0) -> str:
    draw = np.random.default_rng(seed)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "who", "income", "defaulted"])
    for number in range(count):
        writer.writerow([number, f"CANARY-{seed}-{number:06d}", round(float(draw.uniform(1, 9)), 3), bool(draw.integers(2))])
    return text.getvalue()


@pytest.fixture
def keep(template, tmp_path) -> Keep:
    return Keep.open(copy_keep(template, tmp_path / "keep"), PASSPHRASE.encode())


@pytest.fixture
def loans(tmp_path):
    path = tmp_path / "loans.csv"
    path.write_text(rows())
    return path


def person(keep, name, *roles) -> Principal:
    account = keep.owner(name)
    return Principal(name, account.subject, roles or tuple(account.roles), "key:1")


def flip(keep, ref, at) -> None:
    """Alter a byte of the sealed body of a version."""
    sealed = keep.data_show(dataset=ref).sealed
    blob = next(path for path in (keep.premises.directory / "blobs").rglob("*") if path.name == sealed.removeprefix("sha256:"))
    blob.chmod(0o600)
    raw = bytearray(blob.read_bytes())
    raw[at] ^= 1
    blob.write_bytes(raw)


def acts(keep, verb) -> list[dict]:
    return [row for row in keep.log_show() if row.type == "act" and row.summary.startswith(verb)]


def test_a_version_is_added_read_in_batches_and_opened_byte_for_byte(keep, loans, tmp_path):
    done = keep.data_add_from(loans, "loans", About(purposes=(CREDIT,), personal=True, licence="CC-BY-4.0"))
    assert (done.ref, done.kind, done.rows, done.size) == ("loans@1", "csv", 3000, loans.stat().st_size)
    found = keep.data("loans@1", purpose=CREDIT)
    parts = list(found.batches(1000))
    assert [len(part) for part in parts] == [1000, 1000, 1000]
    plain = read_table(loans)
    for name, column in plain.columns.items():
        np.testing.assert_array_equal(np.concatenate([part.column(name) for part in parts]), column)
    assert list(next(iter(found.batches(5, columns=["income"]))).columns) == ["income"]
    assert found.write_to(tmp_path / "out.csv") == done.size
    assert (tmp_path / "out.csv").read_bytes() == loans.read_bytes()
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
    with pytest.raises(Conflict):
        found.write_to(tmp_path / "out.csv")
    shown = keep.data_show(dataset="loans")
    assert shown.columns == {"id": "int64", "who": "text", "income": "float64", "defaulted": "bool"}
    assert (shown.row.personal, shown.row.purposes, shown.licence) == (True, (CREDIT,), "CC-BY-4.0")
    assert [row.ref for row in keep.data_list()] == ["loans@1"]
    loans.write_text(rows(seed=1))
    assert keep.data_add_from(loans, "loans").ref == "loans@2"
    assert keep.data_show(dataset="loans").row.ref == "loans@2"


def test_npz_and_parquet_and_pictures_come_back_as_they_were(keep, tmp_path):
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    draw = np.random.default_rng(2)
    np.savez(tmp_path / "a.npz", x=draw.standard_normal((500, 8)).astype(np.float32), y=np.arange(500))
    pyarrow.parquet.write_table(
        pyarrow.table({"t": [f"row {n}" for n in range(500)], "f": draw.standard_normal(500)}), tmp_path / "a.parquet"
    )
    for number in range(4):
        (tmp_path / "pictures" / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 5), number).save(tmp_path / "pictures" / f"c{number % 2}" / f"{number}.png")
    for name in ("a.npz", "a.parquet", "pictures"):
        ref = keep.data_add_from(tmp_path / name, "many").ref
        sealed, plain = keep.data(ref), read_table(tmp_path / name)
        for column in plain.columns:
            np.testing.assert_array_equal(sealed.table().column(column), plain.column(column))
            np.testing.assert_array_equal(
                np.concatenate([part.column(column) for part in sealed.batches(3)]), plain.column(column)
            )


@pytest.mark.parametrize("what", ["written", "gone", "new"])
def test_a_folder_of_pictures_that_changes_while_it_is_sealed_is_not_added(keep, tmp_path, what, monkeypatch):
    from PIL import Image

    folder = tmp_path / "pictures"
    for number in range(4):
        (folder / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 5), number).save(folder / f"c{number % 2}" / f"{number}.png")
    desk, first = keep.premises.desk(), folder / "c0" / "0.png"
    put = desk.registry.blobs.put

    def put_and_change(chunks):
        sealed = put(chunks)  # every picture was read
        if what == "gone":
            first.unlink()
        else:
            Image.new("L", (6, 5), 99).save(first if what == "written" else folder / "c0" / "9.png")
        return sealed

    monkeypatch.setattr(type(desk.registry.blobs), "put", lambda _blobs, chunks: put_and_change(chunks))
    with pytest.raises(Conflict, match="while it was read: run it again"):
        keep.data_add_from(folder, "pictures")
    monkeypatch.undo()
    assert keep.data_list() == ()
    assert keep.data_add_from(folder, "pictures").ref == "pictures@2"


def tables(folder, count=100_000):
    """The same rows as CSV, npz and Parquet, of some pieces each, and what reads them where they lie plain."""
    draw = np.random.default_rng(5)
    found = {"a": draw.standard_normal(count), "b": np.arange(count)}
    pandas.DataFrame(found).to_csv(folder / "t.csv", index=False)
    np.savez(folder / "t.npz", **found)
    pyarrow.parquet.write_table(pyarrow.table(found), folder / "t.parquet", compression="none")
    return {
        "t.csv": lambda file: pandas.concat(pandas.read_csv(file, chunksize=1000)),
        "t.npz": lambda file: pandas.DataFrame(dict(np.load(file))),
        "t.parquet": pandas.read_parquet,
    }


def test_any_library_that_reads_files_reads_a_sealed_one_and_refuses_an_altered_one(keep, tmp_path):
    for name, read in tables(tmp_path).items():
        ref = keep.data_add_from(tmp_path / name, "table").ref
        with keep.data(ref).file() as file:
            assert not file.writable()
            pandas.testing.assert_frame_equal(read(file), read(tmp_path / name))
        flip(keep, ref, 1_200_000)
        with keep.data(ref).file() as file, pytest.raises(NotTrusted, match="altered"):
            read(file)


def test_no_row_is_ever_on_the_disk(keep, loans, tmp_path):
    keep.data_add_from(loans, "loans", About(personal=True))
    loans.unlink()
    seen = b""
    for number, part in enumerate(keep.data("loans").batches(500)):
        assert part.column("who")[0].startswith("CANARY")
        if number in (0, 3):
            seen += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(seen) > 100_000
    assert b"CANARY" not in seen
    log = [path for path in (keep.premises.directory / "log").rglob("*") if path.is_file()]
    assert b"income" not in b"".join(path.read_bytes() for path in log)


def test_a_person_without_a_grant_is_denied_and_that_is_logged(keep, loans):
    keep.data_add_from(loans, "loans", About(purposes=(CREDIT, "audit")))
    alice = keep.acting_as(person(keep, "alice"))
    with pytest.raises(Denied, match="nobody, administrators included, reads a data set without a grant"):
        alice.data("loans@1", purpose=CREDIT)
    with pytest.raises(Denied):
        alice.data_fetch(dataset="loans@1", purpose=CREDIT)
    assert len(acts(keep, "data.denied")) == 2
    assert not acts(keep, "data.open")
    keep.data_grant(dataset="loans", to="alice", purpose=CREDIT)
    assert len(alice.data("loans@1", purpose=CREDIT)) == 3000
    (opened,) = acts(keep, "data.open")
    assert (opened.actor, opened.about) == ("alice", "loans@1")
    assert f"purpose={CREDIT}" in opened.summary
    for purpose in ("audit", "marketing", ""):  # granted for another one; never for that; for nothing
        with pytest.raises(Denied):
            alice.data("loans@1", purpose=purpose)
    keep.data_revoke(dataset="loans", to="alice", purpose=CREDIT)
    with pytest.raises(Denied):
        alice.data("loans@1", purpose=CREDIT)
    with pytest.raises(Missing, match="is not granted to alice"):
        keep.data_revoke(dataset="loans", to="alice", purpose=CREDIT)


def test_a_grant_to_a_role_is_to_all_who_hold_it_and_to_nobody_else(keep, loans):
    keep.data_add_from(loans, "loans")
    keep.data_grant(dataset="loans", to="role:ml_engineer", purpose="monitoring")
    assert keep.acting_as(person(keep, "bob")).data("loans", purpose="monitoring")
    with pytest.raises(Denied):
        keep.acting_as(person(keep, "alice")).data("loans", purpose="monitoring")
    with pytest.raises(Denied):  # an administrator, too, has to be granted it, which the log then says
        keep.acting_as(person(keep, "admin")).data("loans", purpose="monitoring")
    assert [(one.to, one.purpose) for one in keep.data_show(dataset="loans").grants] == [("role:ml_engineer", "monitoring")]


def test_who_may_add_and_grant(keep, loans):
    with pytest.raises(Denied):
        keep.acting_as(person(keep, "alice")).data_add_from(loans, "loans")
    scientist = keep.acting_as(person(keep, "alice", "data_scientist"))
    scientist.data_add_from(loans, "loans")
    assert scientist.data("loans")
    scientist.data_grant(dataset="loans", to="bob", purpose=CREDIT)
    with pytest.raises(Denied):
        keep.acting_as(person(keep, "bob")).data_grant(dataset="loans", to="bob", purpose="audit")
    with pytest.raises(Missing, match="no account"):
        scientist.data_grant(dataset="loans", to="nobody", purpose=CREDIT)
    with pytest.raises(Invalid, match="not a purpose"):
        scientist.data_grant(dataset="loans", to="bob", purpose="Anything Else")


def test_what_is_granted_for_a_purpose_that_no_version_has_is_a_mistake(keep, loans):
    keep.data_add_from(loans, "loans", About(purposes=(CREDIT,)))
    with pytest.raises(Invalid, match="no version of loans may be read for marketing"):
        keep.data_grant(dataset="loans", to="alice", purpose="marketing")


@pytest.mark.parametrize("at", [200, -4000])
def test_a_flipped_bit_in_the_body_is_refused(keep, loans, at):
    flip(keep, keep.data_add_from(loans, "loans").ref, at)
    with pytest.raises(NotTrusted):
        list(keep.data("loans").batches(1000))


def test_a_record_that_says_more_than_the_log_is_refused(keep, loans):
    keep.data_add_from(loans, "loans", About(purposes=(CREDIT,)))
    records = keep.premises.records
    for change in ('"purposes":[]', '"purposes":["marketing"]'):
        record = records.get(DATASET, "loans@1")
        altered = (record.body or b"").replace(f'"purposes":["{CREDIT}"]'.encode(), change.encode())
        assert altered != record.body
        records.commit([record_change(record, altered)])
        with pytest.raises(NotTrusted, match="not what the releases log says"):
            keep.data("loans@1", purpose="marketing")
        records.commit([record_change(records.get(DATASET, "loans@1"), record.body)])
    assert keep.data("loans@1", purpose=CREDIT)


def record_change(record, body):
    from modelkeep.core.ports import Change

    return Change(record.kind, record.key, body, record.revision)


def test_only_the_keep_says_where_data_lie_sealed(keep, loans):
    done = keep.data_add_from(loans, "loans")
    body = {"sealed": done.sealed, "root": "0" * 64, "header": "0" * 64, "size": 9}
    said = msgspec.json.encode({"name": "loans@1", "format": "csv", "size": 9, "body": body})
    with pytest.raises(Invalid, match="said by 'modelkeep data add' alone"):
        keep.attest_file(kind="dataset", filename="loans@1", digest=done.digest, predicate=said)


def test_the_gateway_never_holds_the_keys_of_data(keep):
    assert DATA_KEK not in GATEWAY_FAMILIES
    assert DATA_KEK not in OWNER_FAMILIES


def test_rotation_wraps_the_keys_of_data_anew(keep, loans):
    keep.data_add_from(loans, "loans")
    done = keep.keys_rotate(family=DATA_KEK)
    assert (done.changed, done.primary) == (1, "file:data-kek/2")
    assert len(keep.data("loans")) == 3000
    rows = {(row.key_id, row.things) for row in keep.keys_inventory().keys if row.family == DATA_KEK}
    assert rows == {("file:data-kek/1", 0), ("file:data-kek/2", 1)}
    assert keep.keys_inventory().problems == ()
    assert keep.keys_rotate(family="model-kek").primary == "file:model-kek/2"
    assert len(list(keep.data("loans").batches(3000))) == 1


def test_a_keep_from_before_gets_its_compartment_by_an_upgrade(keep, loans):
    (keep.premises.directory / "keys" / f"{DATA_KEK}.keep").unlink()
    older = Keep.open(keep.premises.directory, PASSPHRASE.encode())
    with pytest.raises(Missing, match="'modelkeep upgrade' makes it"):
        older.data_add_from(loans, "loans")
    assert older.show(ref="risk@1")
    assert older.data_list() == ()
    assert Keep.complete_keys(keep.premises.directory, PASSPHRASE.encode) == (DATA_KEK,)
    assert Keep.open(keep.premises.directory, PASSPHRASE.encode()).data_add_from(loans, "loans").ref == "loans@1"


def test_over_the_wire_it_is_the_same(keep, loans):
    verbs = table(Keep)
    added = {"name": "loans", "filename": "loans.csv", "data": loans.read_bytes(), "about": {"purposes": [CREDIT]}}
    done = msgspec.msgpack.decode(call(verbs, keep, "data_add", msgspec.msgpack.encode(added)))
    assert done["ref"] == "loans@1"
    asked = msgspec.msgpack.encode({"dataset": "loans@1", "purpose": CREDIT})
    fetched = msgspec.msgpack.decode(call(verbs, keep, "data_fetch", asked))
    assert fetched["data"] == loans.read_bytes()
    assert fetched["columns"] == keep.data_show(dataset="loans@1").columns
    with pytest.raises(Denied):
        call(verbs, keep.acting_as(person(keep, "alice")), "data_fetch", asked)


def test_what_the_columns_of_a_fetched_version_hold_is_not_found_out_again():
    got = DataFetched("t@1", "csv", "t.csv", b"x,y\r\n1,0\r\n2,1\r\n", 7, {"x": "float64", "y": "int64"})
    assert read_fetched(got, personal=False).table.column("x").dtype == np.float64
    text = msgspec.structs.replace(got, columns={"x": "text", "y": "int64"})
    with pytest.raises(Invalid, match="text cannot be trained on: encode 'x'"):
        labelled("t@1", lambda *_: text)
    assert labelled("t@1", lambda *_: msgspec.structs.replace(got, columns={})).x.tolist() == [[1], [2]]


CLEAN = b"""
import csv, sys
least = float(dict(word.split("=") for word in sys.argv[2:])["least"])
with open(sys.argv[1], newline="") as source:
    read = csv.reader(source)
    write = csv.writer(sys.stdout, lineterminator="\\r\\n")
    write.writerow(next(read))
    write.writerows(row for row in read if float(row[2]) >= least)
"""


def cleaned(text: str, least: float) -> str:
    lines = text.splitlines()
    return "".join(f"{line}\r\n" for line in [lines[0], *(one for one in lines[1:] if float(one.split(",")[2]) >= least)])


def confined_here() -> bool:
    from modelkeep.adapters.confine import DEFAULT_LIMITS, run_confined
    from modelkeep.errors import Unavailable

    try:
        return run_confined([sys.executable, "-I", "-c", ""], memoryview(b"x"), "input", DEFAULT_LIMITS).code == 0
    except Unavailable:
        return False


def test_declared_steps_are_in_the_lineage_and_can_be_run_again(keep, loans, tmp_path):
    keep.data_add_from(loans, "loans", About(source="https://example.org/loans"))
    loans.write_bytes(cleaned(loans.read_text(), 5.0).encode())
    step = Step("clean.py", digest_of(CLEAN), {"least": "5.0"})
    keep.data_add_from(loans, "loans", About(parents=("loans@1",), steps=(step,)))
    shown = keep.data_lineage(dataset="loans@2")
    assert "made of\n  loans@1  csv, 3,000 rows" in shown.text
    assert f"by clean.py ({digest_of(CLEAN)[7:19]})" in shown.text
    assert "https://example.org/loans" in shown.text
    assert "went into\n  loans@2" in keep.data_lineage(dataset="loans@1").text
    confined = confined_here()
    done = keep.data_replay("loans@2", [CLEAN], confined=confined)
    assert (done.parent, done.steps, done.confined) == ("loans@1", ("clean.py",), confined)
    with pytest.raises(NotTrusted, match="not the code that loans@2 declares"):
        keep.data_replay("loans@2", [CLEAN + b"#"], confined=confined)
    with pytest.raises(Invalid, match="declares no steps"):
        keep.data_replay("loans@1", [CLEAN], confined=confined)
    lying = Step("clean.py", digest_of(CLEAN), {"least": "4.0"})
    keep.data_add_from(loans, "loans", About(parents=("loans@1",), steps=(lying,)))
    with pytest.raises(Conflict, match="gave other bytes"):
        keep.data_replay("loans@3", [CLEAN], confined=confined)
    with pytest.raises(Missing, match="there is no data set loans@9"):
        keep.data_add_from(loans, "loans", About(parents=("loans@9",), steps=(step,)))
    assert [row.ref for row in keep.data_list()] == ["loans@1", "loans@2", "loans@3"]


def test_a_version_that_is_removed_is_gone_and_its_number_with_it(keep, loans):
    done = keep.data_add_from(loans, "loans", About(source="the bank"))
    with pytest.raises(Denied):
        keep.acting_as(person(keep, "bob")).data_remove(dataset="loans@1", reason="no")
    with pytest.raises(Invalid, match="say why"):
        keep.data_remove(dataset="loans@1", reason="")
    with pytest.raises(Invalid, match="no version"):
        keep.data_remove(dataset="loans", reason="the contract ended")
    keep.data_remove(dataset="loans@1", reason="the contract ended")
    assert done.sealed not in set(keep.premises.blobs.all())
    assert keep.data_list() == ()
    with pytest.raises(Missing):
        keep.data("loans@1")
    assert keep.keys_inventory().problems == ()
    assert keep.data_add_from(loans, "loans").ref == "loans@2"


def test_a_salt_that_was_erased_takes_the_check_of_guesses_and_not_the_data(keep, loans):
    done = keep.data_add_from(loans, "loans")
    assert len(done.digest) == 71
    assert done.digest != digest_of(loans.read_bytes())
    keep.log_erase(dataset="loans@1", reason="asked for")
    assert len(list(keep.data("loans@1").batches(3000))) == 1
