"""Training of the networks and of the entropy coder tables."""
