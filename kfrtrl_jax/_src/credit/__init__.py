"""Estimates of what a state does to the losses that are yet to come, a file each."""
