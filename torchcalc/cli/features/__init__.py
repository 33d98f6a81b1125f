"""python -m torchcalc features: which inputs a model needs, by name.

``settings`` needs no extra package; the others need those of ``pip install torchcalc[demo]``.
"""
