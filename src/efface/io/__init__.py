"""Files that are never half written, and images as files."""
