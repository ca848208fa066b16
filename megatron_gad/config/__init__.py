"""What a user may set: plain dataclasses, the TOML file and the flags. Imports no torch."""
