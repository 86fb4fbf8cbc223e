"""What `dlm-bench samplers` measures: a suite a file."""
