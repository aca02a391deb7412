"""Print ``custody/scanning/keras_names.py``: the classes that Keras itself brings, but for those that run code of the file.

Run it where Keras is installed: ``python tools/keras_names.py > src/modelkeep/custody/scanning/keras_names.py``.
"""

import inspect
import sys

import keras

FAMILIES = ("layers", "initializers", "regularizers", "constraints", "optimizers", "optimizers.schedules", "losses", "metrics")
HOLDS_CODE = {
    "Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "Wrapper", "Layer", "StringLookup", "IntegerLookup",
    "TextVectorization", "RNN", "MeanMetricWrapper", "Pipeline",
}  # fmt: skip
"""Left out: they hold code or a model of another kind, call a function of the file's, or read a file that it names."""


def main() -> None:
    names: dict[str, list[str]] = {}
    for family in FAMILIES:
        module = keras
        for part in family.split("."):
            module = getattr(module, part)
        found = (name for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_"))
        names[family] = sorted(name for name in found if name not in HOLDS_CODE)
    functions = sorted(name for name, value in vars(keras.activations).items() if inspect.isfunction(value))
    names["activations"] = [name for name in functions if name not in ("get", "serialize", "deserialize")]
    out = sys.stdout
    out.write(f'"""What Keras {keras.__version__} brings. Made by ``tools/keras_names.py``: do not edit."""\n')
    out.write('\nNAMES = """\n')
    for family, listed in names.items():
        line = f"{family}:"
        for name in listed:
            if len(line) + len(name) > 120:
                out.write(line + "\n")
                line = f"{family}:"
            line += f" {name}"
        out.write(line + "\n")
    out.write('"""\n')


if __name__ == "__main__":
    main()
