"""`python -m jobflowd`: the same as the console script."""

import sys

from jobflowd.cli import main

if __name__ == "__main__":
    sys.exit(main())
