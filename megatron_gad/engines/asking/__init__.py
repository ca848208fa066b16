"""Asking OpenAI-compatible chat endpoints: concurrent, retried, within a budget."""
