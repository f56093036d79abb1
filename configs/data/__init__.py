"""Configuration group `data`: YAML files only."""
