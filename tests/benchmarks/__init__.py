"""What times things; nothing here can fail on a busy machine."""
