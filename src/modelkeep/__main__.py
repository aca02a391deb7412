"""``modelkeep`` and ``python -m modelkeep``: the process's own settings first, then the command line."""

import os
import sys


def run() -> None:
    """The console script.

    The matrices here are small: a pool of BLAS threads would only make the cores fight, in the gateway most of all.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from modelkeep.cli.main import main  # after the line above: numpy reads it when it is loaded

    sys.exit(main())


if __name__ == "__main__":
    run()
