"""Fingerprints from the command line: made and committed to, checked, refused when they come too late."""

import datetime
import json

import numpy as np
import pytest
from random_networks import fit, independent, nudged, rows

from modelkeep.app.fingerprints import compare, open_population
from modelkeep.app.keep import Keep
from modelkeep.app.suspects import onnx_suspect
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.safetensors import dump, load
from modelkeep.training.fingerprint import labels, resemblance
from modelkeep.workflows.fingerprints import check_older, commitment, parse_fingerprint

DAY = datetime.timedelta(days=1)
MODEL = independent(1000)


def day(offset):
    return f"{datetime.datetime.now(datetime.UTC) + offset * DAY:%Y-%m-%d}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """model.onnx with its rows ref.npz, a copy of it, a rival, and the folder rivals."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "model.onnx").write_bytes(MODEL.onnx())
    np.savez(folder / "ref.npz", x=rows(5, 300)[0])
    (folder / "copy.onnx").write_bytes(nudged(MODEL, 1, 0.1).onnx())
    (folder / "rival.onnx").write_bytes(independent(500).onnx())
    (folder / "rivals").mkdir()
    for seed in range(20):
        (folder / "rivals" / f"{seed}.onnx").write_bytes(independent(seed).onnx())
    return folder


@pytest.fixture
def made(cli, shelf, tmp_path):
    out = tmp_path / "fingerprint"
    asked = ("--reference", str(shelf / "ref.npz"), "--out", str(out), "--probes", "1000")
    return cli("--json", "fingerprint", "make", str(shelf / "model.onnx"), *asked, code=0).json, out


def check(cli, shelf, made, suspect, *more, code=0, population="rivals"):
    asked = ("--fingerprint", str(made[1]), "--population", str(shelf / population))
    return cli("fingerprint", "check", str(shelf / suspect), *asked, *more, code=code)


def test_a_copy_is_told_from_a_rival(cli, shelf, made):
    said, out = made
    assert (said["model"], said["probes"]) == ("model.onnx", 1000) and said["fingerprint"] == ""
    assert said["commitment"] == commitment(out.read_bytes()) and out.stat().st_mode & 0o777 == 0o600
    logged = cli("--json", "log", "show", "--last", "1", code=0).json[0]
    assert (logged["type"], logged["index"]) == ("fingerprint", said["log_index"])
    found = check(cli, shelf, made, "copy.onnx", "--seen", day(1), "--json").json
    assert found["p"] == max(found["p_population"], found["p_key"]) < 1e-6
    assert (found["models"], found["probes"], found["log_index"]) == (20, 1000, said["log_index"])
    assert "older than the suspect" in found["order"] and not found["redrawn"] and found["rank"] == pytest.approx(2 / 21)
    text = check(cli, shelf, made, "copy.onnx").out
    assert "no independent model" in text and "if the population does not and the commitment is older" in text
    assert "not judged: say with --seen" in text
    rival = check(cli, shelf, made, "rival.onnx", "--seen", day(1))
    assert "is not shown to come from model.onnx" in rival.out


def test_p_is_multiplied_by_the_commitments_that_a_claim_could_have_been_made_with(cli, shelf, made, tmp_path):
    out = tmp_path / "second"
    asked = ("--reference", str(shelf / "ref.npz"), "--out", str(out), "--probes", "1000")
    cli("fingerprint", "make", str(shelf / "model.onnx"), *asked, code=0)
    first = check(cli, shelf, made, "copy.onnx", "--json").json
    second = check(cli, shelf, (made[0], out), "copy.onnx", "--json").json
    assert (first["commitments"], second["commitments"]) == (1, 2)
    assert second["p"] == 2 * max(second["p_population"], second["p_key"])
    assert "number 2 of its kind, by which p is multiplied" in check(cli, shelf, (made[0], out), "copy.onnx").out


def test_a_commitment_that_is_younger_than_the_suspect_is_refused(cli, shelf, made):
    refused = check(cli, shelf, made, "copy.onnx", "--seen", day(-1), code=1).line()
    assert "the commitment is younger than the suspect" in refused
    with pytest.raises(NotTrusted, match="with the suspect in hand"):
        check_older(5, 5, "at the same moment")
    check_older(4, 5, "before")


def test_a_fingerprint_that_the_log_does_not_commit_to_is_refused(cli, shelf, made, tmp_path):
    """Its owner made it himself, later, or changed it."""
    data = bytearray(made[1].read_bytes())
    data[-1] ^= 1
    (tmp_path / "altered").write_bytes(data)
    assert "does not commit" in check(cli, shelf, (None, tmp_path / "altered"), "copy.onnx", code=1).line()


def test_probes_are_drawn_again(cli, shelf, made, tmp_path):
    again = ("--model", str(shelf / "model.onnx"), "--reference", str(shelf / "ref.npz"))
    assert check(cli, shelf, made, "copy.onnx", *again, "--json").json["redrawn"]
    assert "drawn again, and the key draws these" in check(cli, shelf, made, "copy.onnx", *again).out
    other = ("--model", str(shelf / "copy.onnx"), "--reference", str(shelf / "ref.npz"))
    assert "the fingerprint was made with" in check(cli, shelf, made, "copy.onnx", *other, code=2).line()
    assert "go together" in check(cli, shelf, made, "copy.onnx", *again[:2], code=2).line()


def test_probes_that_the_key_did_not_draw_are_found_out(cli, shelf, made):
    """An owner who chose his probes and committed to them: the log holds, and the draw does not."""
    from modelkeep.app.fingerprints import redraw
    from modelkeep.training.fingerprint import Probes
    from modelkeep.workflows.fingerprints import Made, parse_fingerprint

    honest = parse_fingerprint(made[1].read_bytes())
    model, reference = (shelf / "model.onnx").read_bytes(), (shelf / "ref.npz").read_bytes()
    redraw(honest, model, reference)
    part = honest.probes
    chosen = Probes(np.roll(part.points, 1, axis=0), part.classes, part.told)
    with pytest.raises(NotTrusted, match="of the probes are those that the key draws"):
        redraw(Made(honest.model, honest.reference, honest.key, chosen), model, reference)


def test_a_release_has_a_fingerprint_too(cli, desk, tmp_path):
    """Its file is named by the digest that the log has of it, so that the release and the file share their fingerprints."""
    out = tmp_path / "risk"
    said = cli("fingerprint", "make", "risk@1", "--reference", str(desk / "ref.npz"), "--out", str(out), code=0).out
    assert "4,000 probes" in said
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    model = keep.show(ref="risk@1").release.model_digest
    found = keep.committed(commitment=commitment(out.read_bytes()))
    assert (found.kind, found.model) == ("fingerprint", model) and found.at > 0


def test_a_function_is_asked_as_a_file_is(cli, shelf, made, tmp_path):
    network = fit(5000, *rows(5000, 300))
    np.savez(tmp_path / "w.npz", inner=network.inner, offset=network.offset, outer=network.outer)
    (tmp_path / "code.py").write_text(
        "import numpy as np\n"
        f"w = np.load({str(tmp_path / 'w.npz')!r})\n"
        "def predict(x):\n"
        "    return np.tanh(x @ w['inner'] + w['offset']) @ w['outer']\n"
    )
    found = check(cli, shelf, made, tmp_path / "code.py:predict", "--json").json
    assert found["p"] > 1e-3 and found["suspect"].endswith("code.py:predict")


def test_bad_input_is_one_line(cli, shelf, made, tmp_path):
    few, twice, own = (tmp_path / name for name in ("few", "twice", "own"))
    for folder in (few, twice, own):
        folder.mkdir()
        for seed in range(3 if folder == few else 20):
            (folder / f"{seed}.onnx").write_bytes((shelf / "rivals" / f"{seed}.onnx").read_bytes())
    (twice / "again.onnx").write_bytes((twice / "3.onnx").read_bytes())
    (own / "model.onnx").write_bytes(MODEL.onnx())
    (tmp_path / "junk").write_bytes(b"junk")
    for population, word in ((few, "20 independent models or more, and the folder has 3"), (twice, "the same file as"),
                             (own, "the model of the fingerprint"), (tmp_path / "none", "no folder")):  # fmt: skip
        assert word in check(cli, shelf, made, "copy.onnx", code=2, population=population).line()
    assert "safetensors" in check(cli, shelf, (None, tmp_path / "junk"), "copy.onnx", code=2).line()
    base = ("--reference", str(shelf / "ref.npz"), "--out", str(tmp_path / "new"))
    for arguments, word in [
        (("nothing@1", *base), "nothing@1"),
        ((str(shelf / "none.onnx"), *base), "no file"),
        ((str(shelf / "model.onnx"), *base, "--probes", "10"), "50 to 100,000 probes"),
        ((str(shelf / "model.onnx"), "--reference", str(shelf / "model.onnx"), *base[2:]), "not an npz file"),
        ((str(shelf / "model.onnx"), *base[:2], "--out", str(made[1])), "exists"),
    ]:
        assert word in cli("fingerprint", "make", *arguments, code=2).line()
    assert not (tmp_path / "new").exists()
    size = json.loads(cli("--json", "status", code=0).out)["log_size"]
    assert cli("--json", "log", "show", "--last", "500", code=0).json[-1]["index"] == size - 1 == made[0]["log_index"]


def test_a_fingerprint_of_the_first_version_is_read_as_it_was(shelf, made):
    made_file = parse_fingerprint(made[1].read_bytes())
    arrays = load(made[1].read_bytes())
    about = json.loads(arrays["about"].tobytes())
    assert about.pop("version") == made_file.version == 2
    old = parse_fingerprint(dump({**arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}))
    assert old.version == 1
    files = {f"{seed}.onnx": (shelf / "rivals" / f"{seed}.onnx").read_bytes() for seed in range(20)}
    copy, others = onnx_suspect((shelf / "copy.onnx").read_bytes()), open_population(files, {})
    points = old.probes.points
    told = [labels(one.ask(points), points) for one in (copy, *others)]
    assert compare(copy, old, others) == resemblance(old.probes, told[0], np.stack(told[1:]))
    assert compare(copy, made_file, others) != compare(copy, old, others)
    with pytest.raises(Invalid, match="do not fit"):
        parse_fingerprint(dump({**arrays, "about": np.frombuffer(json.dumps({**about, "version": 3}).encode(), np.uint8)}))
