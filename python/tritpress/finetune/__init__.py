"""Fine-tuning through the ternary codes: student, losses, optimizer, checkpoints, training loop."""
