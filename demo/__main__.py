"""``python -m demo``: exit 0 only if every check held."""

import argparse
import datetime
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from threadpoolctl import threadpool_limits

from demo import story, training
from demo.findings import Findings
from demo.report import render
from demo.shell import CommandFailed
from demo.show import Show
from demo.stage import Stage
from modelkeep.errors import ModelkeepError


def main() -> int:
    """Tell the story in a temporary folder and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="The main job of modelkeep, end to end, on real models."
    )
    parser.add_argument("--report", default="demo-report.html", help="where to write the report (default: %(default)s)")
    parser.add_argument("--keep-files", action="store_true", help="leave the keep and its logs behind, to look around")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="modelkeep-demo-"))
    found = Findings()
    show = Show(found)
    # processes of their own, made afresh: this one will hold threads and TLS sessions that a fork must not share
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=threadpool_limits, initargs=(1,)) as helpers, threadpool_limits(1):
        stage = Stage(folder, show, found, helpers)
        try:
            tell(stage)
        except (CommandFailed, ModelkeepError, OSError) as failure:
            show.check("The story reaches its end", False, str(failure))
        finally:
            if stage.up is not None and stage.up.process.poll() is None:
                stage.up.stop()
            helpers.shutdown(cancel_futures=True)
    show.verdict()
    report = Path(chosen.report).resolve()
    when = datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC")
    report.write_text(render(found, seconds=show.seconds, when=when), encoding="utf-8")
    _tidy(folder, chosen.keep_files, show)
    outcome = "[bold green]every check held[/bold green]" if found.held else "[bold red]not every check held[/bold red]"
    show.console.print(f"\n{outcome} in {show.seconds:.0f} s; the report is {report}")
    return 0 if found.held else 1


def tell(stage: Stage) -> None:
    """The eight steps, in order."""
    story.train_models(stage)
    story.make_keep(stage)
    training.train_guarded(stage)
    copyist = story.run_traffic(stage)
    story.trace_copies(stage, copyist)
    story.tamper(stage)
    story.kill_gateway(stage)
    story.audit_offline(stage)


def _tidy(folder: Path, keep_files: bool, show: Show) -> None:
    if keep_files:
        show.console.print(f"the keep, its passphrase and the logs are in {folder}")
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
