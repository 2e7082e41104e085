"""Training of the demo model; only ``python -m videoprune.demo.train`` needs it."""
