"""What an answer cost: FLOPs, bytes, seconds, and pictures of what was kept. Nothing here imports torch."""
