"""Approximations of the influence matrix, a file each, and what combines them."""
