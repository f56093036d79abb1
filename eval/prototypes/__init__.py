"""Pictures of prototypes: the gallery, and the health report."""
