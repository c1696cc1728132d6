"""Sources of sequences, made on the device inside the scan."""
