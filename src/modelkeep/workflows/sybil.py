"""One thief with many accounts: questions are dealt round-robin, and an account that is refused is dropped."""

from collections.abc import Sequence

import numpy as np

from modelkeep.errors import Invalid, OverBudget, Refused
from modelkeep.extraction.attacks import Array
from modelkeep.workflows.attack import Target


class Sybil:
    """A ``Target`` that asks through several, one an account. ``answered``: rows answered by each of them."""

    def __init__(self, accounts: Sequence[Target]) -> None:
        """Raises Invalid (no account)."""
        if not accounts:
            raise Invalid("a thief needs at least one account")
        self._accounts = accounts
        self._open = list(range(len(accounts)))
        self._turn = 0
        self.answered = [0] * len(accounts)

    def predict(self, x: Array) -> Array:
        """Answers (n, k) for rows (n, d), each row asked through the account whose turn it is, one request an account.

        What a refused account was to ask is dealt to the others. Raises the refusal when no account is left, or when it is an
        account's first answer (a wrong key is not a defence); else what the accounts raise.
        """
        turns = np.arange(self._turn, self._turn + len(x))
        self._turn += len(x)
        answers: list[Array | None] = [None] * len(x)
        left = np.arange(len(x))
        while len(left):
            dealt = np.array(self._open)[turns[left] % len(self._open)]
            for account in np.unique(dealt):
                rows = left[dealt == account]
                for row, answer in zip(rows, self._ask(int(account), x[rows]), strict=False):
                    answers[row] = answer
            left = np.array([row for row in left if answers[row] is None], dtype=np.int64)
        return np.array(answers)

    def _ask(self, account: int, rows: Array) -> Array:
        """The account's answers; none, and no more turns for it, when it is refused and others are open."""
        try:
            answers = self._accounts[account].predict(rows)
        except (Refused, OverBudget):
            if len(self._open) == 1 or not self.answered[account]:
                raise
            self._open.remove(account)
            return rows[:0]
        self.answered[account] += len(rows)
        return answers
