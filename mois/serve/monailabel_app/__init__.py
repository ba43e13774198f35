"""An app of MONAI Label: the server's own program runs it, and calls a session for every request."""
