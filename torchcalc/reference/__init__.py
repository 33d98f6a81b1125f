"""Each op again in plain PyTorch: the only oracle, and what other devices run."""
