"""Semidefinite certificates of linear classifiers and two-layer networks (Raghunathan, Steinhardt & Liang 2018)."""
