"""What all evidence made of patches shares: similarities, sources, search, boxes, edits."""
