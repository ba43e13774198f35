"""Phantoms: synthetic scans with bodies, lesion types, and lesions in the bodies."""
