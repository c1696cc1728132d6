"""Programs that parse flags and call the package."""
