"""Configuration group `experiment`: YAML files only."""
