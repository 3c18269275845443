"""Scoring what a model writes."""
