"""Where the figures, pictures and files of a run go: its own folder, W&B, and other loggers."""
