"""The main job end to end, as a user would do it: ``python -m demo``."""
