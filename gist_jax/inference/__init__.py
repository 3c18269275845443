"""Compressing instructions into gist caches and generating from them."""
