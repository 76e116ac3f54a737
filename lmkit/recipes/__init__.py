"""Recipes: one runnable YAML per technique."""
