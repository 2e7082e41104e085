"""What the `videoprune bench` commands measure: one file a kind of measurement."""
