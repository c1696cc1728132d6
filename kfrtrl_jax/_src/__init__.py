"""The implementation; the modules above it name what is public."""
