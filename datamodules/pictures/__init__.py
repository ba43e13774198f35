"""Synthetic pictures of anything: grounds, objects and looks as broad as medical images and microscopy together."""
