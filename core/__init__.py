"""The ground floor: everything numpy can decide, decided once for all three frameworks."""
