"""python -m torchcalc demo: a dense and a sparse model, side by side.

``settings`` needs no extra package, ``training`` needs torch alone; the others need those of
``pip install torchcalc[demo]``.
"""
