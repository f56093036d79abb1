"""Measurement: interventions, explanations, metrics, comparison."""
