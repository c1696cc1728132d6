"""Estimators of the influence matrix, one file each, and combinators of them."""
