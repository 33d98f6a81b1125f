"""The command line: python -m torchcalc demo | info | check."""
