"""What the adapters to other libraries save, against those libraries."""
