"""`python -m jobflowctl`: the same as the console script."""

from jobflowctl.cli import main

if __name__ == "__main__":
    main()
