"""What `make gpu` runs: python -m tools.gpu."""
