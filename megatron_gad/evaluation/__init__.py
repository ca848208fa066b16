"""Measuring a student against its teacher's text."""
