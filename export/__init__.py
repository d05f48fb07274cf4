"""Exported forms of a model: one module per format, each with the proof that it computes what the torch model does."""
