"""Triton kernels for what lies between the matrix products, each beside its plain torch in tests.

Arithmetic is float32 inside and rounded once, on the way out. Block sizes follow from shapes alone,
never from timing, so that the numbers do too. Importing this imports Triton.
"""
