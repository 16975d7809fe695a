"""Real processes, real files, real faults.

`python -m tests.faults --every 10` injects faults into the system calls of a real daemon; the test
modules beside it fill disks, cut networks and take sessions over. What all of them judge by is the
oracle: the tasks themselves note their starts and ends, synced, before anybody else could know.
"""
