"""Evidence layers."""
