"""How well single units (axes of concept whitening, concepts of a bottleneck) stand for annotated concepts."""
