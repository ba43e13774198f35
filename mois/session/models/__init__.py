"""The models of a session on its scan: one, or one for each type of lesion."""
