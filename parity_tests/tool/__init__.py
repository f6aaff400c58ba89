"""What `triport parity` runs."""
