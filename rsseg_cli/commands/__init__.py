"""The commands, each in the file or folder of its name."""
