"""Fine-tuning through the ternary codes: losses, optimizer, recipe, checkpoints, training loop."""
