"""Classifies texts and tables of any size with a trained model."""
