"""Pure functions of tensors and numbers, without a model and without files. Each is tested against
a mathematical oracle."""
