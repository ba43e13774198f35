"""Synthetic scans: bodies, lesion types, and scenes with lesions in them."""
