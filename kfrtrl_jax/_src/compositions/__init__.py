"""Cells, estimators, tasks and the like by their names: from text or nested dicts to what they make."""
