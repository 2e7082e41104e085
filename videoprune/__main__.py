"""`python -m videoprune` is the command line."""

from videoprune.cli import run

if __name__ == "__main__":
    run()
