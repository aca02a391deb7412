"""Data sets over a running control: added and read by people from afar, by the policy, on the record."""

import numpy as np

LINES = "id,income\n" + "".join(f"{number},{number / 7}\n" for number in range(300))


def person(open_house, tmp_path, name, role):
    """The command line of somebody who has logged in to the control of a house."""
    ca = str(open_house.keep / "tls" / "ca.pem")
    here = open_house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path / name))
    added = here("user", "add", name, "--role", role, "--json", code=0).json
    (tmp_path / f"{name}.old").write_text(added["password"])
    (tmp_path / f"{name}.new").write_text(f"four quite ordinary words of {name}")
    files = ("--password-file", str(tmp_path / f"{name}.old"), "--new-password-file", str(tmp_path / f"{name}.new"))
    here("--server", open_house.control, "login", "--user", name, "--ca", ca, *files, code=0)
    return lambda *words, **more: here("--server", open_house.control, *words, **more)


def test_a_data_scientist_adds_and_grants_and_an_analyst_reads_for_that_purpose_alone(open_house, tmp_path):
    def at_data(name, role):
        asked = person(open_house, tmp_path, name, role)
        return lambda *words, **more: asked("data", *words, **more)

    dora, anton = at_data("dora", "data_scientist"), at_data("anton", "analyst")
    (tmp_path / "loans.csv").write_text(LINES)
    assert "not" in anton("add", "distant", str(tmp_path / "loans.csv"), code=1).err
    assert (
        "added distant@1: csv, 300 rows"
        in dora("add", "distant", str(tmp_path / "loans.csv"), "--purpose", "scoring", code=0).out
    )
    assert "distant@1" in anton("list", code=0).out
    again = ("add", "distant", str(tmp_path / "loans.csv"), "--purpose", "scoring")
    dave = at_data("dave", "data_scientist")
    assert "ask for 'modelkeep data grant distant dave --add'" in dave(*again, code=1).err
    assert "dave may add versions of distant" in dora("grant", "distant", "dave", "--add", code=0).out
    assert "dave may add versions of distant" in anton("show", "distant", code=0).out
    assert "added distant@2" in dave(*again, code=0).out
    assert "dave may no longer add" in dora("revoke", "distant", "dave", "--add", code=0).out
    assert dave(*again, code=1).err.count("\n") == 1
    out = str(tmp_path / "out.csv")
    asked = ("open", "distant@1", "--purpose", "scoring", "--out", out)
    assert "without a grant" in anton(*asked, code=1).err
    dora("grant", "distant", "anton", "--purpose", "scoring", code=0)
    assert "added by dora" in anton("show", "distant@1", code=0).out
    anton(*asked, code=0)
    assert (tmp_path / "out.csv").read_text() == LINES
    assert "anton (analyst) may not" in anton("remove", "distant@1", "--reason", "no", code=1).err
    assert "works on the folder only" in anton("replay", "distant", "--step", out, code=2).err
    said = open_house.cli("log", "show", "--last", "16", code=0).out
    assert "data.denied purpose=scoring" in said
    assert "data.denied how=add" in said
    assert "data.open how=fetch purpose=scoring" in said
    dora("remove", "distant@1", "--reason", "the test ended", code=0)


def test_a_release_is_evaluated_over_the_server_as_an_export(open_house, tmp_path):
    nora = person(open_house, tmp_path, "nora", "data_scientist")
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x=draw.normal(size=(20, 30)), y=draw.integers(0, 2, 20))
    asked = ("evaluate", "risk@1", "--data", str(tmp_path / "test.npz"), "--attack", "square", "--queries", "3", "--log")
    found = nora("--json", *asked, code=0).json
    assert found["model"] == "risk@1" and found["clean"]["examples"] == 20
    said = [row for row in open_house.cli("--json", "log", "show", code=0).json if row["index"] in found["logged"]]
    assert {(row["type"], row["actor"]) for row in said} == {("evaluation", "nora")}
    assert "nora" in open_house.cli("show", "risk@1", code=0).out  # who had it exported
