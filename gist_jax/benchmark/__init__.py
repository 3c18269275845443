"""Measures what gisting saves: no cache, prompt cache and gist cache side by side."""
