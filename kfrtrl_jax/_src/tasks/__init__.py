"""Tasks: streams of sequences, generated on the device inside the scan."""
