"""Metrics of found lesions against true lesions: pure functions of arrays on one grid."""
