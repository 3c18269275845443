"""The configs of the package: `--config=NAME` finds NAME.py here from any folder.

Each has one function, `get_config`, that changes what it needs of `gist_jax.training.config.default`. It
may take what stands after a colon in `--config=NAME:MACHINE`.
"""
