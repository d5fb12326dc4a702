"""Vision transformers behind the contract, one small file per family."""
