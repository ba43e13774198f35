"""Checkpoints of a training: which are kept, what they hold, and how a training goes on from them."""
