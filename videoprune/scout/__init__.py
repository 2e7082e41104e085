"""Scouts: which of the sampled frames the vision tower sees at all."""
