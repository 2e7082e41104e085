"""The command line from a checkout: `python cli.py ask film.mp4 "what happens first?"`."""

from videoprune.cli import run

if __name__ == "__main__":
    run()
