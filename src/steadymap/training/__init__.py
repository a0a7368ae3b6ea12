"""Training, checkpoints and adversarial attacks."""
