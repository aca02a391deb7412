"""Attacks that move rows across a classifier's boundary: how many of its right answers they can turn, within a ball and a box.

Gradient attacks (``apgd``, ``fab``) need a module; ``square`` asks a function of numpy rows and needs no PyTorch; ``cascade``
runs one after the other, each on the rows that are left.
"""
