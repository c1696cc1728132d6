"""Experiments as plain Python: get_config() each, get_sweep() in some."""
