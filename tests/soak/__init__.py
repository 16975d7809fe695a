"""The soak: a real daemon and 20 real workers while everything is killed, stopped and continued.

`python -m tests.soak --minutes 10 --json`; the first lines of `__main__.py` say the rest.
"""
