"""Judges of images: what an image shows, in which style, and whether it is an image at all."""
