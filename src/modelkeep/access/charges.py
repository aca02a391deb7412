"""What a request is charged before a model is asked: its rows since the last second factor, and its rows of the quota."""

from modelkeep.access.quotas import Quotas
from modelkeep.access.stepup import StepUp
from modelkeep.access.view import Grant
from modelkeep.errors import ModelkeepError


class Charges:
    """Both counts together: both are debited, or none is. Safe to use from several threads.

    ``put_back`` is for answers that fail because of us. An input that cannot be answered stays charged, and so does whoever
    goes away before the answer: or the model could be probed for nothing.
    """

    def __init__(self, step_up: StepUp, quotas: Quotas) -> None:
        self._step_up, self._quotas = step_up, quotas

    def held(self, grant: Grant, rung: int, rows: int, asked: bool = False) -> bool:
        """Count ``rows`` on the leases in hand; False when they do not hold so many: then ``take``. Never asks the records.

        ``asked``: the ladder asks for a recent second factor. Raises StepUpRequired (it does, or the risk at ``rung``).
        """
        if not self._step_up.held(grant, rung, rows, asked):
            return False
        if self._quotas.take_held(grant.quota_id, grant.quota, rows):
            return True
        self._step_up.put_back(grant, rows)
        return False

    def take(self, grant: Grant, rows: int) -> None:
        """Count ``rows``, after ``held`` said False. May wait for the records.

        Raises StepUpRequired, OverBudget (the quota), TooLarge (no factor is good for so many at once), Unavailable.
        """
        self._step_up.take(grant, rows)
        try:
            self._quotas.take(grant.quota_id, grant.quota, rows)
        except ModelkeepError:
            self._step_up.put_back(grant, rows)
            raise

    def put_back(self, grant: Grant, rows: int) -> None:
        """Undo the count of ``rows``, as far as the leases that they came from are still in hand. Never asks the records."""
        self._step_up.put_back(grant, rows)
        self._quotas.put_back(grant.quota_id, grant.quota, rows)
