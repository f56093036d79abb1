"""Recipes: stages, terms, events, and training that can be stopped and resumed anywhere."""
