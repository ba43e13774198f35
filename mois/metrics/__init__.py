"""Figures of a result against the truth: pure functions of arrays on one grid."""
