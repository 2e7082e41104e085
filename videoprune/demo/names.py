"""The names of everything a generated scene can show; pure Python, imported by drawing and by language."""

from __future__ import annotations

PLACES = ("forest", "desert", "beach", "city", "space", "room")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
DIRECTIONS = ("left", "right", "up", "down")
ITEMS = ("key", "flag", "umbrella", "anchor", "mushroom", "fish")
ANOMALIES = ("fire", "flood", "lightning", "blackout", "smoke")
NUMBERS = ("zero", "one", "two", "three", "four")

# Words for "any of these": trained like the others, so that a question that names no object still finds its frames.
HYPERNYMS = ("object", "item", "unusual")

# The words whose embedding rows the visual tokens are aligned with, in label order.
CONCEPTS = SHAPES + COLOURS + DIRECTIONS + ITEMS + PLACES + ANOMALIES + HYPERNYMS
