"""Commands: what each subcommand does, and the options it takes."""
