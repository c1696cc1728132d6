"""The papers' training runs and what they come to: from the workdirs of sweeps to tables and a page."""
