"""What is wrong with a configuration, found before a process group or a device is touched."""
