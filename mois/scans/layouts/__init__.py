"""Layouts of dataset folders besides that of nnU-Net."""
