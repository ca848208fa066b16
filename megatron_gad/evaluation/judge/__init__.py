"""Verdicts of a model at a chat endpoint."""
