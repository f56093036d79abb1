"""Configuration group `backbone`: YAML files only."""
