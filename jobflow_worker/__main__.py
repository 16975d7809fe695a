"""`python -m jobflow_worker`: the same as `jobflow-worker`."""

import sys

from jobflow_worker.cli import main

sys.exit(main())
