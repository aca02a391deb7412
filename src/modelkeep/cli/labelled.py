"""What verbs that train and measure have in common: where their rows come from."""

import click

from modelkeep.app.dataresults import DataFetched
from modelkeep.app.keep import Keep
from modelkeep.app.labelled import Labelled, labelled
from modelkeep.cli.context import Context

ROWS = "CSV, npz (x, y) or Parquet file, folder with a folder of pictures a class, or sealed data set NAME@VERSION"
label_option = click.option(
    "--label", default="", metavar="COLUMN", help="Column of a table that is predicted; the others are features.  [default: y]"
)
purpose_option = click.option("--purpose", default="", help="What a sealed data set is read for; the log records it.")


def read_labelled(ctx: Context, source: str, label: str, purpose: str) -> Labelled:
    """Rows of ``source``; of a sealed data set in memory only, by the access rules. Raises as ``labelled``."""

    def fetch(dataset: str, why: str) -> DataFetched:
        return ctx.call(Keep.data_fetch, dataset=dataset, purpose=why)

    with ctx.out.busy("Reading the data"):
        return labelled(source, fetch, label=label, purpose=purpose)
