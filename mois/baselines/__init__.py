"""Other systems, adapted on the same scans, to be scored by the same code (docs/baselines.md)."""
