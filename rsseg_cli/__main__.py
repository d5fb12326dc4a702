"""Runs the command `rsseg` as `python -m rsseg_cli`."""

from rsseg_cli.cli import main

if __name__ == "__main__":
    main()
