"""``python -m benchmarks [NAME…] [-- ARGS…]``: run the named benchmarks, or all of them; ARGS go to each."""

import importlib
import pkgutil
import sys

import benchmarks


def main(argv: list[str]) -> int:
    """Exit status: 0, or 2 for a name that no benchmark has."""
    names, args = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    known = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_"))
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"there is no benchmark {unknown[0]}: choose from {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        importlib.import_module(f"benchmarks.{name}").run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
