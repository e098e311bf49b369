"""The commands of `lrdist`."""
