"""Prompts of the reader: as they are given and drawn, and what the model answers to them."""
