"""Time and memory of models and operators."""
