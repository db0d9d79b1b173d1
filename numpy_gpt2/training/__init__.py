"""Training: optimizers, schedule, the training loop."""
