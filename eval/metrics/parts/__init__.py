"""What units look at, held against annotated parts: consistency, stability, purity, localisation."""
