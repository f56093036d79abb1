"""Configuration group `model`: YAML files only."""
