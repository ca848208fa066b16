"""Collecting a teacher's responses as text."""
