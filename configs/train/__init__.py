"""Configuration group `train`: YAML files only."""
