"""Benchmarks of the real thing: real daemons, real workers, SQLite with synchronous=FULL.

    python -m bench                all of them: results.json and a table
    python -m bench.NAME [--quick] one of them: one JSON object on stdout

Each module says what it measures and how; `rig.py` runs the daemon, `measure.py` has the form of
the answer, `yardstick.py` what all rates are compared with.
"""
