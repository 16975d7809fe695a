"""A deterministic simulator of one session: see `__main__.py` for how to run it."""
