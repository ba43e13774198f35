"""What a training or a session hands on: bundles, banks of exemplars, calibration, and where they come from."""
