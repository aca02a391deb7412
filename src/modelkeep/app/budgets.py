"""What accounts and clusters have learnt of their information budgets, in numbers and words, for whoever looks at a list."""

from collections.abc import Mapping

from msgspec.structs import replace

from modelkeep.app.accountresults import BudgetRow
from modelkeep.app.premises import Premises
from modelkeep.custody.book import EvidenceBook
from modelkeep.extraction.budget import quoted
from modelkeep.workflows.spendings import spendings

HALF = 0.5
"""Share of a budget from which it is listed."""


def budget_rows(here: Premises, book: EvidenceBook) -> list[BudgetRow]:
    """Budgets of this period that are on record, by pseudonym, those that are spent most first.

    Raises NotTrusted, Unavailable.
    """
    found, now, ladder = [], here.clock.now_ns(), here.ladder.of(book)
    for release, name, spent in spendings(here.records):
        ahead = spent.forecast(ladder.days, now)
        if ahead is not None:
            found.append(
                BudgetRow(
                    name=name,
                    release=release,
                    learnt=spent.learnt,
                    limit=spent.limit,
                    fidelity=spent.fidelity,
                    measure=spent.measure,
                    left=ahead.lasts,
                    said=quoted(spent.learnt, spent.limit, spent.fidelity, spent.measure),
                    forecast=ahead.text,
                    accounts=spent.accounts,
                )
            )
    return sorted(found, key=lambda row: (-row.learnt / row.limit, row.release, row.name))


def named(row: BudgetRow | None, names: Mapping[str, str]) -> BudgetRow | None:
    """The same with names of accounts instead of pseudonyms."""
    if row is None:
        return None
    accounts = tuple(sorted(names.get(subject, subject) for subject in row.accounts))
    return replace(row, name=names.get(row.name, row.name), accounts=accounts)
