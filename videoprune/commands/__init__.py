"""One file a command, or a few that belong together; `videoprune.cli` puts them into the app.

A command is a few lines over the Python API. Nothing here imports torch at the top of a file, so that `--help` answers at once.
"""
