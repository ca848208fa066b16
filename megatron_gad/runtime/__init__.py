"""What a step works with: the run and its parts, turns on the device, files, numbers."""
