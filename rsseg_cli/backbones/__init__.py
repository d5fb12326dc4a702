"""Backbones: vision transformers behind `rsseg_cli.contract.Backbone`, one file per family."""
