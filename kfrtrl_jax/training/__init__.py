"""The loop around the scan: configs, chunks, logs, evaluations, checkpoints, sweeps."""
