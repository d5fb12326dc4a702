"""Lets `python -m rsseg_cli` be the command `rsseg`."""

from rsseg_cli.cli import main

if __name__ == "__main__":
    main()
