"""A cell, a readout, a loss, an estimator and an optimizer, put together."""
