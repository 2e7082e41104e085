"""Scorers: how much each frame has to do with the question."""
