"""What the demo prints: a live table on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.clients import HonestClient
from demo.findings import Findings, Moment
from demo.thieves import Thief

_COLOURS = {"done": "green", "asking": "cyan", "held": "bold red", "failed": "bold red"}


class Show:
    """Prints, and writes every moment into the findings."""

    def __init__(self, found: Findings, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
        self._found = found
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def step(self, title: str) -> None:
        """A new part of the story."""
        self.console.print(f"\n[bold]{title}[/bold]")

    def say(self, what: str) -> None:
        """One line, with the time; it goes into the report's timeline too."""
        at = self.seconds
        self._found.timeline.append(Moment(at, what))
        self.console.print(f"[dim]{at:5.1f} s[/dim]  {what}")

    def check(self, claim: str, held: bool, seen: str) -> bool:
        """One thing that had to hold."""
        mark = "[green]✓[/green]" if held else "[bold red]✗[/bold red]"
        self.console.print(f"         {mark} {claim}: {seen}")
        return self._found.check(claim, held, seen)

    def watch(self, clients: Sequence[HonestClient], thieves: Sequence[Thief], busy: Callable[[], bool]) -> None:
        """Show the traffic until ``busy`` says that it is over."""
        told: set[str] = set()
        if self.console.is_terminal:
            with Live(traffic(clients, thieves), console=self.console, refresh_per_second=4, transient=True) as live:
                while busy():
                    time.sleep(0.25)
                    self._tell_stops(thieves, told)
                    live.update(traffic(clients, thieves))
            self.console.print(traffic(clients, thieves))
            return
        last = 0.0
        while busy():
            time.sleep(0.1)
            self._tell_stops(thieves, told)
            if self.seconds - last > 5:
                last = self.seconds
                self.console.print(f"[dim]{last:5.1f} s[/dim]  {_line(clients)}")
        self._tell_stops(thieves, told)

    def _tell_stops(self, thieves: Sequence[Thief], told: set[str]) -> None:
        for thief in thieves:
            if thief.state != "asking" and thief.name not in told:
                told.add(thief.name)
                self.say(f"{thief.name} {thief.state} after {thief.answered} queries")

    def verdict(self) -> None:
        """The table of thieves and the list of what held, at the end."""
        table = Table(title="Thieves", title_justify="left", box=None, pad_edge=False, header_style="dim")
        for head in ("attack", "model", "queries", "ended by", "fidelity then", "with no defence"):
            table.add_column(head, justify="right" if head in ("queries", "fidelity then", "with no defence") else "left")
        for row in self._found.thieves:
            table.add_row(
                row.attack,
                row.model,
                f"{row.queries:,}",
                row.stopped,
                f"[bold]{row.reached:.1%}[/bold]",
                f"{row.undefended:.1%}",
            )
        self.console.print()
        self.console.print(table)
        self.console.print("\n[bold]What had to hold[/bold]")
        for check in self._found.checks:
            mark = "[green]✓[/green]" if check.held else "[bold red]✗[/bold red]"
            self.console.print(f"  {mark} {check.claim} [dim]({check.seen})[/dim]")


def traffic(clients: Sequence[HonestClient], thieves: Sequence[Thief]) -> Group:
    """Everybody at work, as one table and a summary line."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("account", "asks", "model", "answers", "state"):
        table.add_column(head, justify="right" if head == "answers" else "left", no_wrap=True)
    for thief in thieves:
        colour = "bold yellow" if thief.loot is not None else _COLOURS.get(thief.state, "cyan")
        state = Text(thief.state, style=colour)
        table.add_row(Text(thief.name, style="yellow"), thief.plot.attack, thief.plot.victim.name, f"{thief.answered:,}", state)
    for client in clients:
        state = Text(client.state, style=_COLOURS[client.state])
        table.add_row(client.name, client.habit.title, client.victim.name, f"{client.answered:,}", state)
    return Group(table, Text(_line(clients), style="dim"))


def _line(clients: Sequence[HonestClient]) -> str:
    answered, alarms = sum(client.answered for client in clients), sum(client.alarms for client in clients)
    changed, done = sum(client.changed for client in clients), sum(client.done for client in clients)
    return (
        f"{answered:,} answers to {len(clients)} honest accounts ({done} done), {alarms} alarms, {changed} changed top answers"
    )
