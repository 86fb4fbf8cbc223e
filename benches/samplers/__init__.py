"""What samplers cost and how far their output is from the model's own distribution."""
