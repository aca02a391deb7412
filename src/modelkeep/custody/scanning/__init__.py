"""The rules of the scanner, one file per format. Parsers in ``formats/`` say what is there; these say whether it is allowed."""
