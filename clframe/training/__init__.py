"""The one training loop and what it stands on: batches, optimiser recipes, checkpoints, seeds."""
