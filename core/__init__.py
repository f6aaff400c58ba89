"""What numpy can decide, decided once for all three frameworks."""
