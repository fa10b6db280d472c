"""What was lost, what was kept: perplexity, top-1, KL, latency, gradients, gates, the handoff checklist."""
