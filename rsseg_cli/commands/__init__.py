"""From settings to objects to one command; each command's work is in the file of its name."""
