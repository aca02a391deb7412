"""Print ``custody/scanning/onnx_names.py``: the operators of the ONNX standard, of every version of it.

Run it again with a newer onnx: ``python tools/onnx_names.py > src/modelkeep/custody/scanning/onnx_names.py``.
"""

import sys

import onnx
import onnx.defs

DOMAINS = ("", "ai.onnx.ml")
"""Those that are served: the previews and the one for training are not."""


def main() -> None:
    out = sys.stdout
    out.write(f'"""The operators of ONNX {onnx.__version__}. Made by ``tools/onnx_names.py``: do not edit."""\n')
    out.write('\nNAMES = """\n')
    for domain in DOMAINS:
        line = f"{domain}:"
        for name in sorted({each.name for each in onnx.defs.get_all_schemas_with_history() if each.domain == domain}):
            if len(line) + len(name) > 120:
                out.write(line + "\n")
                line = f"{domain}:"
            line += f" {name}"
        out.write(line + "\n")
    out.write('"""\n')


if __name__ == "__main__":
    main()
