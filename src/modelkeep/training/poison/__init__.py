"""Rows of training data that somebody planted or mislabelled: what each method finds, and one verdict of them all."""
