"""Experiment configs in plain Python: each defines get_config(), and some get_sweep()."""
