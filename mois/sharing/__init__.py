"""What a training or a session passes on: bundles, exemplar banks, calibration, and their provenance."""
