"""Pure tensor functions: no model, no I/O. Each has a property test with a mathematical oracle."""
