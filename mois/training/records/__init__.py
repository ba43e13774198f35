"""What loggers get of a training: its steps, its validations and its model."""
