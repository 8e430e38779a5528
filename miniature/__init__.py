"""Build of the bundled miniature. Not part of the wheel: ``python -m miniature.build --help``."""
