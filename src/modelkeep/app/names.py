"""What people are called: the one place that joins the keep's own accounts with those of other issuers."""

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.externals import EXTERNAL, parse_external
from modelkeep.core.ports import Records


def names_by_pseudonym(records: Records) -> dict[str, str]:
    """Account names by pseudonym: the logs have only these. Raises NotTrusted (a record is damaged), Unavailable."""
    own = {account.subject: account.name for account in map(parse_account, records.scan(ACCOUNT))}
    return own | {account.subject: account.name for account in map(parse_external, records.scan(EXTERNAL))}
