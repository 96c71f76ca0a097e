"""Formulas of methods that keep a network able to learn."""
