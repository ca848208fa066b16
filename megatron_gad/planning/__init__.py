"""Memory and time of a run before it starts, by arithmetic alone: no torch, no device."""
