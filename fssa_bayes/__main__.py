"""Runs the command `fssa-bayes` by `python -m fssa_bayes`."""

from fssa_bayes.cli import main

if __name__ == "__main__":
    main()
