"""Benchmarks: readers of their folders, protocols that say what a number means, scores, and the runner."""
