"""The sequential loop: one task after the other on one set of compiled programs."""
