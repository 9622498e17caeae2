"""Comparison of variants over seeds: which is better, by how much, and how sure that is."""
