"""What a run will cost in memory and time, before it starts. Only ``of_run`` looks at a device."""
