"""The demo's own pieces: what it claims must come from what was seen, and the report must stand alone."""

import re
import socket
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from demo.clients import HABITS, crowd, questions
from demo.findings import ClientRow, Findings, ModelCard, Moment, Stand, Suspect, ThiefRow
from demo.plots import fidelity_plot, stand_plot, trace_plot
from demo.recipe import REACHED, main
from demo.report import render
from demo.show import Show
from demo.thieves import Plot, few_rows, plots, undefended
from demo.train import Victim, digits, tumour


@pytest.fixture(scope="module")
def victims() -> tuple[Victim, Victim]:
    return tumour(), digits()


def findings(*, held: bool = True) -> Findings:
    found = Findings()
    found.models = [ModelCard("digits@1", "images <8 by 8>", 0.96, "sha256:" + "ab" * 32, 7, 22_000)]
    found.clients = [ClientRow("client-01", "in bursts & pauses", "digits", 100, 0, 0, 2.0, 9.5)]
    curve = ((10, 0.4), (100, 0.7), (1_000, 0.9))
    found.thieves = [
        ThiefRow("thief-line", "line-search", "digits", 51, "review-required", 1_000, 0.42, 0.9, 0.11, curve[:1], curve)
    ]
    found.suspects = [Suspect("stolen copy", 0.97, "copyist", "copyist", (("copyist", 1e-300), ("client-01", 1.0)))]
    found.stands = [Stand("model <as trained>", (0.92, 0.88, 0.95), (0.0, 0.0, 0.014))]
    found.timeline = [Moment(1.0, "a & b")]
    found.check("every thief is stopped", held, "51 queries")
    return found


def test_models_are_good_enough_to_steal_and_parties_do_not_overlap(victims: tuple[Victim, Victim]) -> None:
    for victim in victims:
        assert victim.accuracy > 0.93
        parts = [{tuple(row) for row in part} for part in (victim.train, victim.reference, victim.loose, victim.exam)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        probs = victim.bare.predict(victim.exam)
        assert probs.shape == (len(victim.exam), victim.classes)
        np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-5)


def test_the_crowd_is_uneven_and_asks_only_unseen_rows(victims: tuple[Victim, Victim]) -> None:
    clients = crowd(victims)
    assert len(clients) == len({client.name for client in clients}) == 20
    assert {client.habit for client in clients} == set(HABITS)
    for client in clients:
        x = questions(client.habit, client.victim, np.random.default_rng(client.seed))
        unseen = {tuple(row) for row in client.victim.unseen}
        assert len(x) == client.habit.rows
        assert all(tuple(row) in unseen for row in x)


def test_thieves_own_rows_that_the_exam_does_not_hold(victims: tuple[Victim, Victim]) -> None:
    for plot in plots(*victims):
        exam = {tuple(row) for row in plot.victim.exam}
        assert not any(tuple(row) in exam for row in plot.rows)


def test_an_attack_with_no_defence_spends_its_whole_budget(victims: tuple[Victim, Victim]) -> None:
    plot = Plot("thief", "knockoff", victims[0], 60, few_rows(victims[0]))
    report = undefended(replace(plot, victim=replace(plot.victim)))
    assert (report.stopped, report.queries) == ("budget", 60)
    assert report.fidelity > report.majority


@pytest.mark.parametrize("held", [True, False])
def test_the_report_is_one_well_formed_page_that_says_the_verdict(held: bool) -> None:
    page = render(findings(held=held), seconds=61.2, when="22 November 2026")
    assert ("All 1 checks held" if held else "1 of 1 checks failed") in page
    assert "images &lt;8 by 8&gt;" in page
    assert "a &amp; b" in page
    assert "model &lt;as trained&gt;" in page and ">92.0%</text>" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg.replace("&minus;", "-"))


def test_the_report_asks_nothing_of_the_network() -> None:
    page = render(findings(), seconds=1.0, when="today")
    assert not re.findall(r"(?:src|href|url|@import)\s*[=(]", page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page


def test_plots_stay_inside_their_frame() -> None:
    found = findings()
    for svg in (
        fidelity_plot(found.thieves[0]),
        fidelity_plot(replace(found.thieves[0], queries=3, curve=())),
        trace_plot(found.suspects[0], 1e-3),
        stand_plot(found.stands[0]),
    ):
        width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
        for name, value in re.findall(r'\b(x1?|x2|cx|y1?|y2|cy)="([-\d.]+)"', svg):
            assert 0 <= float(value) <= (width if "x" in name else height)


def test_the_training_does_not_begin_where_the_keep_is_within_reach(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        port = str(unused.getsockname()[1])
        assert main("no data", str(tmp_path / "out"), str(tmp_path), port) == REACHED
        unused.listen()
        assert main("no data", str(tmp_path / "out"), str(tmp_path / "nowhere"), port) == REACHED
    assert not (tmp_path / "out").exists()


def test_no_check_at_all_is_not_success() -> None:
    assert not Findings().held
    found = findings()
    found.check("another", False, "no")
    assert not found.held


def test_what_is_shown_is_what_was_found() -> None:
    found = findings()
    console = Console(record=True, width=120, force_terminal=False)
    show = Show(found, console)
    show.say("a keep was made")
    show.check("the logs verify", False, "1 log is damaged")
    show.verdict()
    text = console.export_text()
    assert "a keep was made" in text
    assert "✗ the logs verify" in text
    assert found.timeline[-1].what == "a keep was made"
    assert not found.held
